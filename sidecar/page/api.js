// Reads from the store. A key lives in this tab only, and travels as a bearer token.

const KEY = "routereplay.key";

class Refused extends Error {
  constructor(status, code, message) { super(message); this.status = status; this.code = code; }
}

async function read(path) {
  const answer = await fetch(path, { headers: authorization(), cache: "no-store", credentials: "omit" }).catch(() => {
    throw new Refused(0, "unreachable", "The store does not answer. It may be stopped, or the network is down.");
  });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, body.code || "http", body.message || "The store answered " + answer.status + ".");
}

async function json(path) { return (await read(path)).json(); }

function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: "Bearer " + key } : {};
}

function url(kind, id, rest) { return "/v1/" + kind + "/" + encodeURIComponent(id) + (rest || ""); }

function query(values) {
  const kept = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return kept.length ? "?" + new URLSearchParams(kept) : "";
}

// A link cannot carry a key, so with one the answer is fetched and handed over.
function raw(text, path, filename) {
  return h("a", { href: path, download: filename, onclick: async (event) => {
    if (!sessionStorage.getItem(KEY)) return;
    event.preventDefault();
    const answer = await read(path).catch((error) => { show(problem(error)); });
    if (!answer) return;
    const address = URL.createObjectURL(await answer.blob());
    const link = h("a", filename ? { href: address, download: filename } : { href: address, target: "_blank" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  } }, text);
}

function askForKey(message) {
  show(h("section", { class: "card" }, h("h1", null, "This store wants a key"),
    h("p", { class: "soft" }, message, " It stays in this tab and is forgotten when the tab is closed."),
    h("form", { class: "row", id: "key", onsubmit: (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, new FormData(event.target).get("key").trim());
      route();
    } }, h("input", { name: "key", type: "password", "aria-label": "API key", autocomplete: "off", required: true, style: { "max-width": "420px" } }),
    h("button", null, "Open"))));
  document.querySelector("#key input").focus();
}
