// One trajectory or request: its turns, and how its rows fall on the experts.

async function record(kind, id, alive) {
  const about = await json(url(kind === "trajectory" ? "trajectories" : "requests", id));
  if (!alive()) return;
  const turns = kind === "trajectory" ? about.turns : about.choices;
  const sealed = turns.filter((turn) => turn.state === "sealed");
  const view = { kind, id, about, turns, sealed, turn: null, policy: null, alive };
  const heat = h("div", { id: "heat" });
  const list = h("div", null);
  const draw = async () => {
    list.replaceChildren(turnTable(view, redraw));
    await drawHeat(view, heat, redraw);
  };
  // What goes wrong later, when a turn is picked, belongs where the heat map would be.
  const redraw = () => draw().catch((error) => heat.replaceChildren(problem(error)));
  show(recordHead(view), list, heat);
  await draw();
}

function base(view) { return url(view.kind === "trajectory" ? "trajectories" : "requests", view.id); }

function recordHead(view) {
  const manifest = view.sealed.length ? view.sealed[0].manifest : null;
  const whole = view.sealed.length === view.turns.length && view.sealed.every(complete);
  const rows = view.sealed.reduce((total, turn) => total + turn.manifest.rows, 0);
  const policies = [...new Set(view.sealed.flatMap((turn) => turn.manifest.policy_versions.map((span) => span.version)))];
  const path = base(view);
  return h("section", { class: "card" },
    h("div", { class: "row between" }, h("h1", { class: "id" }, view.id),
      h("div", { class: "links" }, raw("JSON", path), raw("routes .npz", path + "/routes?format=npz", "routes.npz"), raw("expert counts", path + "/experts"),
        view.sealed.length ? h("a", { href: "#/compare?a=" + encodeURIComponent(view.kind + ":" + view.id) }, "compare") : null)),
    h("div", { class: "facts" }, whole ? pill("good", "complete") : pill("warning", view.sealed.length + " of " + view.turns.length + " sealed"),
      fact(view.kind === "trajectory" ? "turns" : "choices", view.turns.length), fact("rows", count(rows)),
      manifest ? [fact("model", manifest.model || "–"), fact("layers", manifest.num_layers), fact("experts", "top " + manifest.topk + " of " + manifest.num_experts)] : null,
      fact("policy", versions(policies)),
      view.kind === "request" && view.about.trajectory_id ? h("span", null, "trajectory ", h("a", { class: "id", href: "#/trajectory/" + encodeURIComponent(view.about.trajectory_id) }, view.about.trajectory_id)) : null));
}

function fact(name, value) { return h("span", null, name + " ", h("b", null, value)); }

function complete(turn) {
  const m = turn.manifest;
  return m.rows === Math.max(m.prompt_len + m.completion_len - 1 - m.row_start, 0);
}

function turnTable(view, draw) {
  const longest = Math.max(...view.sealed.map((turn) => turn.manifest.prompt_len + turn.manifest.completion_len), 1);
  const heads = ["", view.kind === "trajectory" ? "request" : "choice", "state", { n: "prompt" }, { n: "completion" }, { n: "rows" }, "tokens", "policy", "ended by"];
  const rows = view.turns.map((turn, index) => {
    const m = turn.manifest, place = view.sealed.indexOf(turn);
    const chosen = m && (view.turn === null || view.turn === place);
    const pick = () => { if (m) { view.turn = view.turn === place ? null : place; draw(); } };
    const name = view.kind === "trajectory" ? h("a", { class: "id", href: "#/request/" + encodeURIComponent(turn.request_id), onclick: (event) => event.stopPropagation() }, turn.request_id) : turn.choice;
    return { properties: { "aria-selected": view.turn !== null && chosen ? "true" : undefined, onclick: pick, title: m ? "show the experts of this turn" : undefined },
      cells: [h("span", { class: "faint" }, index), name, turnState(turn), { n: m ? m.prompt_len : "–" }, { n: m ? m.completion_len : "–" },
        { n: m ? m.rows : turn.rows_lost ? "−" + turn.rows_lost : "–" }, m ? spanOf(m, longest) : "", m ? versions(m.policy_versions.map((span) => span.version)) : "–", m ? m.finish_reason : "–"] };
  });
  return card(view.kind === "trajectory" ? "Turns" : "Choices", "a row picks one for the heat map",
    table(heads, rows, { class: "turns" }),
    h("div", { class: "facts" }, swatch("var(--faint)", "rows not in this record"), swatch("var(--accent)", "prompt with rows"), swatch("var(--good)", "sampled")));
}

function swatch(tone, text) { return h("span", null, h("i", { class: "key", style: { background: tone } }), text); }

function turnState(turn) {
  if (turn.state === "sealed" && turn.manifest.invalid && turn.manifest.invalid.length) return pill("critical", "invalid: " + turn.manifest.invalid.join(", "));
  if (turn.state === "sealed") return complete(turn) ? pill("good", "sealed") : pill("warning", "incomplete");
  return pill(turn.state === "pending" ? "info" : "warning", turn.reason ? turn.state + ": " + turn.reason : turn.state);
}

function spanOf(m, longest) {
  const share = (value) => value / longest * 100 + "%";
  const part = (from, to, kind) => (to > from ? h("i", { class: kind, style: { left: share(from), width: share(to - from) } }) : null);
  const stop = m.row_start + m.rows, inPrompt = Math.min(m.prompt_len, stop);
  return h("div", { class: "span", title: "rows of tokens " + m.row_start + " to " + stop }, part(0, Math.min(m.row_start, m.prompt_len), ""), part(m.row_start, inPrompt, "new"), part(Math.max(m.prompt_len, m.row_start), stop, "out"));
}

async function drawHeat(view, place, draw) {
  if (!view.sealed.length) { place.replaceChildren(); return; }
  const asked = view.kind === "trajectory" ? { turn: view.turn, policy: view.policy } : { choice: view.sealed[view.turn || 0].choice, policy: view.policy };
  const load = await json(base(view) + "/experts" + query(asked));
  if (!view.alive()) return;
  const policies = [...new Set(load.turns.flatMap((turn) => turn.policy_versions))];
  const choose = (text, pressed, change) => h("button", { type: "button", "aria-pressed": String(pressed), onclick: () => { change(); draw(); } }, text);
  const title = view.turn === null ? "Experts, " + (view.kind === "trajectory" ? "all turns" : "choice " + view.sealed[0].choice) : "Experts, " + (view.kind === "trajectory" ? "turn " : "choice ") + (view.kind === "trajectory" ? view.turns.indexOf(view.sealed[view.turn]) : view.sealed[view.turn].choice);
  place.replaceChildren(card(title, plural(load.rows, "row") + (view.kind === "trajectory" ? ", each token once" : ""),
    h("div", { class: "row between", style: { "margin-bottom": "12px" } },
      h("div", { class: "row", id: "picks" }, view.kind === "trajectory" ? [choose("All turns", view.turn === null, () => { view.turn = null; }),
        view.sealed.slice(0, 24).map((turn, i) => choose("Turn " + view.turns.indexOf(turn), view.turn === i, () => { view.turn = i; }))] : null,
        policies.length > 1 ? policies.map((version) => choose("Policy " + version, view.policy === version, () => { view.policy = view.policy === version ? null : version; })) : null),
      legend(ramp(false), "0", peak(load).toFixed(1) + " × the mean")),
    load.rows ? heatMap(loadMap(load)) : h("p", { class: "empty" }, "No rows of this turn and policy are counted here.")));
}

function peak(load) { return Math.max(...load.layers.map((layer) => layer.max_over_mean), 1); }

function loadMap(load) {
  const top = peak(load);
  const mean = load.counts.map((row) => row.reduce((total, value) => total + value, 0) / load.num_experts);
  return {
    levels: load.counts.map((row, i) => (mean[i] ? row.map((value) => value / mean[i] / top) : null)),
    stops: ramp(false), layerStart: load.layer_start, columns: load.num_experts, barTitle: "busiest expert × the mean",
    bars: load.layers.map((layer) => ({ value: layer.max_over_mean, text: layer.used ? layer.max_over_mean.toFixed(1) + " ×" : "dense" })),
    describe: (y, x) => {
      const layer = load.layers[y];
      if (!layer.used) return "layer " + layer.layer + " is dense";
      return "layer " + layer.layer + ", expert " + x + "\n" + plural(load.counts[y][x], "choice") + ", " + (load.counts[y][x] / mean[y]).toFixed(2) + " × the mean\n" +
        layer.used + " of " + load.num_experts + " experts used, entropy " + layer.entropy.toFixed(3);
    },
  };
}
