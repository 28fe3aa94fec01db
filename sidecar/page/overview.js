// The store now: rates, what is stored and expires, alarms, recorders, the latest trajectories.

const samples = [];
const SAMPLES = 90;

async function overview(alive) {
  while (alive()) {
    if (!document.hidden || !samples.length) {
      const [summary, latest] = await Promise.all([json("/v1/summary"), json("/v1/trajectories?limit=100").catch(() => ({ trajectories: [], window: 0 }))]);
      if (!alive()) return;
      remember(summary);
      state(summary);
      const focused = document.activeElement && document.activeElement.id;
      show(summary.ready ? picture(summary, latest) : away(summary));
      if (focused && document.getElementById(focused)) document.getElementById(focused).focus();
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

function remember(summary) {
  const counters = summary.counters, last = samples[samples.length - 1];
  const sum = (prefix) => Object.entries(counters).reduce((total, [name, value]) => total + (name.startsWith(prefix) ? value : 0), 0);
  const now = {
    at: summary.at, ingest: counters.routereplay_ingest_bytes_total || 0, fetched: counters.routereplay_fetch_bytes_total || 0,
    sealed: counters["routereplay_ingest_frames_total{sealed}"] || 0, failed: sum("routereplay_errors_total") + sum("routereplay_ingest_refused_total"),
    waiting: counters.routereplay_waiting_requests || 0,
  };
  const restarted = last && now.ingest < last.ingest;
  if (!last || restarted) samples.length = 0;
  else for (const name of ["ingest", "fetched", "sealed", "failed"]) now[name + "Rate"] = Math.max(0, (now[name] - last[name]) / Math.max(now.at - last.at, 0.1));
  samples.push(now);
  if (samples.length > SAMPLES) samples.shift();
}

function state(summary) {
  const node = document.getElementById("state");
  const engine = summary.engine || {};
  const name = engine.valkey_version ? "Valkey " + engine.valkey_version : "Redis " + (engine.redis_version || "");
  node.replaceChildren(pill(summary.ready ? "good" : "critical", summary.ready ? "ready" : "not ready"),
    h("span", { class: "soft" }, "  " + (summary.ready ? name + ", " + summary.durability + "  ·  " : "") + summary.version));
}

function away(summary) {
  return h("section", { class: "card" }, h("h1", null, "The engine behind this store is not there"),
    h("p", null, pill("critical", summary.problem.code), "  ", summary.problem.message),
    h("p", { class: "soft" }, "Recorders keep what they have and send it again; this page looks again every two seconds."));
}

function rates(name) { return samples.map((sample) => sample[name + "Rate"] || 0); }

function lately(name) {
  const found = rates(name).slice(-5);
  return found.reduce((total, value) => total + value, 0) / Math.max(found.length, 1);
}

function tile(title, value, unit, note, extra) {
  return h("section", { class: "card tile" }, h("h2", null, title), h("div", { class: "value" }, value, h("span", { class: "unit" }, unit)), h("div", { class: "note" }, note), extra);
}

function picture(summary, latest) {
  const engine = summary.engine, stored = summary.stored, last = samples[samples.length - 1];
  const [stale, staleUnit] = bytes(stored.bytes);
  const used = engine.used_memory || 0, limit = engine.maxmemory || 0;
  return [
    h("div", { class: "tiles" },
      tile("Ingest", ...perSecond(lately("ingest")), plural(last.sealed, "record") + " sealed here", spark(rates("ingest"))),
      tile("Sealed", lately("sealed").toFixed(1), "records/s", "failed: " + count(last.failed), spark(rates("sealed"))),
      tile("Fetch", ...perSecond(lately("fetched")), plural(last.waiting, "reader") + " waiting", spark(rates("fetched"))),
      tile("Stored", stale, staleUnit, plural(stored.records, "record") + ", " + plural(stored.rows, "row")),
      tile("Engine memory", ...bytes(used), limit ? "of " + size(limit) : "no limit set",
        limit ? h("div", { class: "meter" }, h("i", { style: { width: Math.min(used / limit * 100, 100) + "%" } })) : null)),
    h("div", { class: "two" }, alarmCard(summary.alarms), expiryCard(stored, summary.ttl_s)),
    recorderCard(summary.recorders, summary.at),
    trajectoryCard(latest, summary.at),
  ];
}

function perSecond(value) { const [number, unit] = bytes(value); return [number, unit + "/s"]; }

function alarmCard(alarms) {
  if (!alarms.length) return card("Alarms", null, h("p", { class: "empty" }, pill("good", "none"), "  nothing dropped, refused or incomplete in the last 15 minutes"));
  return card("Alarms", null, h("ul", { class: "alarms", id: "alarms" }, alarms.map((alarm) =>
    h("li", null, pill(alarm.severity, alarm.severity), h("span", null, alarm.message, alarm.count > 1 ? h("span", { class: "soft" }, "  × " + count(alarm.count)) : null)))));
}

function expiryCard(stored, ttl) {
  const items = stored.expiring.map((slice) => ({ value: slice.bytes, ...slice }));
  return card("Expiring", "routes are kept for " + duration(ttl), bars(items, (item) => size(item.bytes) + " in " + plural(item.records, "record") + "\nexpire within " + duration(item.in_s)),
    h("div", { class: "ends" }, h("span", null, "now"), h("span", null, "in " + duration(ttl))));
}

function recorderCard(recorders, now) {
  if (!recorders.length) return null;
  return card("Recorders", "as their latest records tell", table(
    ["engine", "lost or wrong", "model", { n: "heard" }, { n: "sealed" }, { n: "rows" }, { n: "bytes" }, "policy"],
    recorders.slice(0, 20).map((one) => [h("span", { class: "id" }, one.engine_id), health(one), one.model || "–", { n: ago(one.last_at, now) },
      { n: count(one.sealed) }, { n: count(one.rows) }, { n: size(one.bytes) }, versions(one.policy_versions)])));
}

function health(one) {
  const listed = (counts) => Object.entries(counts).map(([reason, n]) => reason + " " + n).join(", ");
  const pills = [];
  if (Object.keys(one.invalid).length) pills.push(pill("critical", listed(one.invalid)));
  if (Object.keys(one.dropped).length) pills.push(pill("warning", listed(one.dropped)));
  if (one.incomplete) pills.push(pill("warning", "incomplete " + one.incomplete));
  return h("span", { class: "row" }, pills.length ? pills : pill("good", "well"));
}

function trajectoryCard(latest, now) {
  const found = latest.trajectories;
  if (!found.length) return card("Latest trajectories", null, h("p", { class: "empty" }, "Nothing is recorded yet. Start vLLM with this store in its environment, and talk to it:"),
    h("pre", null, "ROUTEREPLAY_STORE_URL=" + location.origin + " vllm serve Qwen/Qwen3-30B-A3B"));
  return card("Latest trajectories", "of the last " + plural(latest.window, "event"), table(
    ["trajectory", "state", "model", { n: "turns" }, { n: "tokens" }, { n: "rows" }, { n: "bytes" }, "policy", { n: "sealed" }, { n: "expires in" }, ""],
    found.map((one) => [
      link(one), condition(one), one.model || "–", { n: one.turns }, { n: count(one.tokens) }, { n: count(one.rows) }, { n: size(one.bytes) },
      versions(one.policy_versions),
      { n: ago(one.last_at, now) }, { n: one.expires_at ? duration(one.expires_at - now) : "–" },
      one.sealed ? h("a", { href: "#/compare?a=" + encodeURIComponent(source(one)), title: "compare with another" }, "compare") : "",
    ])));
}

function condition(one) {
  if (one.invalid.length) return pill("critical", one.invalid.join(", "));
  if (one.complete) return pill("good", "complete");
  return pill("warning", one.dropped ? one.dropped + " dropped" : "incomplete");
}

function source(one) { return one.trajectory_id === null ? "request:" + one.request_id : "trajectory:" + one.trajectory_id; }

function link(one) {
  const kind = one.trajectory_id === null ? "request" : "trajectory", id = one.trajectory_id === null ? one.request_id : one.trajectory_id;
  return h("a", { class: "id", href: "#/" + kind + "/" + encodeURIComponent(id) }, id);
}
