// Lines, bars and heat maps, drawn with what the browser has.

const RAMPS = {
  light: [[238, 242, 250], [158, 190, 240], [72, 122, 214], [28, 66, 150], [10, 28, 78]],
  dark: [[27, 33, 43], [31, 62, 124], [58, 112, 212], [134, 178, 255], [226, 238, 255]],
  lightTwo: [[158, 66, 18], [233, 158, 104], [240, 241, 244], [124, 164, 232], [28, 74, 170]],
  darkTwo: [[255, 178, 122], [168, 92, 44], [30, 35, 44], [52, 98, 186], [142, 184, 255]],
};

function dark() { return matchMedia("(prefers-color-scheme: dark)").matches; }

function ramp(two) { return RAMPS[(dark() ? "dark" : "light") + (two ? "Two" : "")]; }

function colour(stops, level) {
  const place = Math.max(0, Math.min(1, level)) * (stops.length - 1);
  const below = Math.min(Math.floor(place), stops.length - 2);
  return stops[below].map((from, i) => from + (stops[below + 1][i] - from) * (place - below));
}

function spark(values) {
  const top = Math.max(...values, 1e-9), last = Math.max(values.length - 1, 1);
  const points = values.map((value, i) => (i / last * 100).toFixed(2) + " " + (29 - value / top * 27).toFixed(2));
  const line = points.length > 1 ? "M" + points.join("L") : "";
  return svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "area", d: line && line + "L100 30L0 30Z" }), svg("path", { d: line }));
}

function bars(items, describe) {
  const top = Math.max(...items.map((item) => item.value), 1e-9);
  return h("div", { class: "bars" }, items.map((item) => h("i", {
    class: item.value ? undefined : "none", style: { height: Math.max(item.value ? 2 : 0, item.value / top * 84) + "px" },
    onmousemove: (event) => tip(describe(item), event), onmouseleave: () => tip(null),
  })));
}

// levels: rows of numbers from 0 to 1, null for a dense layer; describe(row, column) is its tip.
function heatCanvas(levels, stops, rowHeight, describe) {
  const rows = levels.length, columns = Math.max(...levels.map((row) => (row ? row.length : 0)), 1);
  const picture = new ImageData(columns, rows);
  levels.forEach((row, y) => {
    for (let x = 0; x < columns; x += 1) {
      const [r, g, b] = row ? colour(stops, row[x]) : [128, 128, 128];
      picture.data.set([r, g, b, row ? 255 : 24], (y * columns + x) * 4);
    }
  });
  const canvas = h("canvas", { width: columns, height: rows, role: "img", "aria-label": rows + " layers by " + columns + " experts",
    style: { height: rows * rowHeight + "px" },
    onmousemove: (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.min(columns - 1, Math.floor((event.clientX - box.left) / box.width * columns));
      const y = Math.min(rows - 1, Math.floor((event.clientY - box.top) / box.height * rows));
      if (x >= 0 && y >= 0) tip(describe(y, x), event);
    },
    onmouseleave: () => tip(null),
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

function legend(stops, from, to) {
  const picture = new ImageData(120, 1);
  for (let x = 0; x < 120; x += 1) picture.data.set([...colour(stops, x / 119), 255], x * 4);
  const canvas = h("canvas", { width: 120, height: 1 });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return h("span", { class: "legend" }, from, canvas, to);
}

function rowHeightFor(layers) { return Math.max(5, Math.min(22, Math.floor(560 / layers))); }

// A heat map with layer numbers at its left and one bar a layer at its right.
function heatMap(map) {
  const height = rowHeightFor(map.levels.length), step = Math.ceil(13 / height);
  const rows = { "grid-auto-rows": height + "px" };
  const top = Math.max(...map.bars.map((bar) => Math.max(bar.value, bar.noise || 0)), 1e-9);
  return h("div", { class: "heat" },
    h("div", { class: "head" }, map.barTitle),
    h("div", { class: "axis", style: { ...rows, "grid-column": "1" } }, map.levels.map((_, i) => h("span", null, i % step ? "" : map.layerStart + i))),
    heatCanvas(map.levels, map.stops, height, map.describe),
    h("div", { class: "loads", style: rows }, map.bars.map((bar) => h("div", null,
      h("b", { style: { width: bar.value / top * 100 + "%" } },
        bar.noise ? h("i", { class: "noise", style: { left: bar.noise / Math.max(bar.value, 1e-9) * 100 + "%" } }) : null),
      height >= 10 ? bar.text : ""))),
    h("div", { class: "below" }, h("span", null, "expert 0"), h("span", null, "layers down, experts across"), h("span", null, map.columns - 1)));
}
