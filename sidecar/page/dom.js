// Elements are made of tags, properties and text; nothing is ever parsed as markup.

function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

function svg(tag, properties, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return fill(node, properties, children);
}

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function show(...nodes) {
  document.getElementById("main").replaceChildren(...nodes.flat(9).filter(Boolean));
}

function card(title, note, ...children) {
  return h("section", { class: "card" }, h("h2", null, title, note ? h("small", null, "  " + note) : null), children);
}

function table(heads, rows, options) {
  const cells = (row, tag) => row.map((cell) => {
    const numeric = cell && cell.n !== undefined;
    return h(tag, { class: numeric ? "n" : undefined, scope: tag === "th" ? "col" : undefined }, numeric ? cell.n : cell);
  });
  return h("div", { class: "scroll" }, h("table", { class: options && options.class },
    h("thead", null, h("tr", null, cells(heads, "th"))),
    h("tbody", null, rows.map((row) => h("tr", row.properties, cells(row.cells || row, "td"))))));
}

function pill(kind, text) {
  const sign = { good: "✓", warning: "!", critical: "✕", info: "i" }[kind];
  return h("span", { class: "pill " + kind }, sign ? h("span", { "aria-hidden": "true" }, sign) : null, text);
}

function tip(text, event) {
  let node = document.getElementById("tip");
  if (!text) { if (node) node.remove(); return; }
  if (!node) { node = h("div", { id: "tip" }); document.body.append(node); }
  node.textContent = text;
  const left = Math.min(event.clientX + 14, innerWidth - node.offsetWidth - 8);
  node.style.left = left + "px";
  node.style.top = Math.min(event.clientY + 14, innerHeight - node.offsetHeight - 8) + "px";
}

function problem(error) {
  return h("section", { class: "card" }, pill("critical", error.code || "error"),
    h("p", null, error.message), h("p", null, h("a", { href: "#/" }, "Back to the store")));
}
