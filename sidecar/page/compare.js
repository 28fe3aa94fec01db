// Two trajectories, requests or policies: where their rows fall on different experts.

const POLICY_TRAJECTORIES = 8;

async function compare(params, alive) {
  const latest = await json("/v1/trajectories?limit=100");
  if (!alive()) return;
  const known = latest.trajectories.filter((one) => one.sealed);
  const policies = [...new Set(known.flatMap((one) => one.policy_versions))];
  const sources = [...policies.map((version) => "policy:" + version), ...known.map(source)];
  const chosen = { a: params.get("a") || sources.find((one) => !one.startsWith("policy:")) || "", b: params.get("b") || "" };
  const place = h("div", { id: "difference", style: { display: "grid", gap: "16px" } });
  const pick = (side) => h("label", { style: { flex: "1 1 300px" } }, h("span", { class: "soft" }, side.toUpperCase()),
    h("input", { name: side, list: "sources", value: chosen[side], placeholder: "trajectory:ID, request:ID or policy:VERSION", autocomplete: "off", spellcheck: "false" }));
  show(h("section", { class: "card" }, h("h1", null, "Compare"),
    h("p", { class: "soft" }, "A policy is counted over the latest " + POLICY_TRAJECTORIES + " trajectories that it served."),
    h("form", { class: "row", id: "pair", style: { "align-items": "end" }, onsubmit: (event) => {
      event.preventDefault();
      const form = new FormData(event.target);
      location.hash = "#/compare" + query({ a: form.get("a"), b: form.get("b") });
    } }, pick("a"), pick("b"), h("button", null, "Compare"), h("datalist", { id: "sources" }, sources.map((one) => h("option", { value: one }))))), place);
  if (!chosen.a || !chosen.b) return;
  place.replaceChildren(h("p", { class: "soft" }, "Counting …"));
  const [a, b] = await Promise.all([loadOf(chosen.a, known), loadOf(chosen.b, known)]);
  if (alive()) place.replaceChildren(...differenceOf(chosen, a, b));
}

async function loadOf(text, known) {
  const at = text.indexOf(":"), kind = text.slice(0, at), id = text.slice(at + 1);
  if (kind === "trajectory") return json(url("trajectories", id, "/experts"));
  if (kind === "request") return json(url("requests", id, "/experts"));
  if (kind !== "policy") throw new Refused(400, "bad_request", "“" + text + "” names nothing; write trajectory:ID, request:ID or policy:VERSION.");
  const mine = known.filter((one) => one.policy_versions.includes(id)).slice(0, POLICY_TRAJECTORIES);
  if (!mine.length) throw new Refused(404, "not_found", "No trajectory of policy " + id + " is among the latest.");
  const loads = await Promise.all(mine.map((one) => loadOfPolicy(one, id)));
  return loads.filter((load) => sameShape(load, loads[0])).reduce(addLoads);
}

function loadOfPolicy(one, policy) {
  const path = one.trajectory_id === null ? url("requests", one.request_id) : url("trajectories", one.trajectory_id);
  return json(path + "/experts" + query({ policy }));
}

function sameShape(a, b) { return a.num_experts === b.num_experts && a.counts.length === b.counts.length && a.topk === b.topk; }

function addLoads(a, b) {
  return { ...a, rows: a.rows + b.rows, counts: a.counts.map((row, y) => row.map((value, x) => value + b.counts[y][x])) };
}

function differenceOf(chosen, a, b) {
  if (!sameShape(a, b)) return [problem(new Refused(400, "bad_request", "They come from models of different shapes: " + shape(a) + " and " + shape(b) + "."))];
  const layers = a.counts.map((row, y) => layerDifference(row, b.counts[y]));
  const top = Math.max(...layers.flatMap((layer) => (layer ? layer.shares.map(Math.abs) : [0])), 1e-9);
  const worst = layers.reduce((found, layer, y) => (layer && (found < 0 || layer.distance - layer.noise > layers[found].distance - layers[found].noise) ? y : found), -1);
  const map = {
    levels: layers.map((layer) => (layer ? layer.shares.map((share) => 0.5 + share / top / 2) : null)),
    stops: ramp(true), layerStart: a.layer_start, columns: a.num_experts, barTitle: "distance  │ expected by chance",
    bars: layers.map((layer) => ({ value: layer ? layer.distance : 0, noise: layer ? layer.noise : 0, text: layer ? layer.distance.toFixed(2) : "dense" })),
    describe: (y, x) => (layers[y] ? "layer " + (a.layer_start + y) + ", expert " + x + "\nA " + percent(layers[y].a[x]) + ", B " + percent(layers[y].b[x]) +
      "\ndistance " + layers[y].distance.toFixed(3) + ", by chance " + layers[y].noise.toFixed(3) : "layer " + (a.layer_start + y) + " is dense"),
  };
  const said = worst < 0 ? null : h("p", { class: "soft", id: "verdict" }, verdict(layers[worst], a.layer_start + worst));
  const side = (name, load) => card(name, plural(load.rows, "row"), heatMap(loadMap(withLayers(load))));
  return [
    card("Difference of shares", "A more is blue, B more is orange", h("div", { class: "row between", style: { "margin-bottom": "12px" } }, said, legend(ramp(true), "B +" + percent(top), "A +" + percent(top))), heatMap(map)),
    h("div", { class: "two" }, side("A  " + chosen.a, a), side("B  " + chosen.b, b)),
  ];
}

function shape(load) { return load.counts.length + " layers, top " + load.topk + " of " + load.num_experts; }

function percent(value) { return (value * 100).toFixed(value < 0.1 ? 2 : 1) + " %"; }

// Total variation distance, and what two samples of one distribution would show by chance.
function layerDifference(countsA, countsB) {
  const sum = (row) => row.reduce((total, value) => total + value, 0);
  const na = sum(countsA), nb = sum(countsB);
  if (!na || !nb) return null;
  const a = countsA.map((value) => value / na), b = countsB.map((value) => value / nb);
  const pooled = countsA.map((value, x) => (value + countsB[x]) / (na + nb));
  const spread = Math.sqrt(2 / Math.PI * (1 / na + 1 / nb));
  return {
    a, b, shares: a.map((share, x) => share - b[x]), distance: sum(a.map((share, x) => Math.abs(share - b[x]))) / 2,
    noise: sum(pooled.map((share) => Math.sqrt(share * (1 - share)))) * spread / 2,
  };
}

function verdict(layer, number) {
  const more = layer.distance / Math.max(layer.noise, 1e-9);
  if (more < 1.3) return "No layer differs by more than two samples of this size would by chance.";
  return "Layer " + number + " differs most: distance " + layer.distance.toFixed(2) + ", " + more.toFixed(1) + " × what chance would show.";
}

function withLayers(load) {
  return { ...load, layers: load.counts.map((row, y) => {
    const total = row.reduce((sum, value) => sum + value, 0), busiest = Math.max(...row);
    const entropy = total ? -row.reduce((sum, value) => (value ? sum + value / total * Math.log(value / total) : sum), 0) / Math.log(row.length) : 0;
    return { layer: load.layer_start + y, used: row.filter(Boolean).length, max_over_mean: total ? busiest * row.length / total : 0, entropy };
  }) };
}
