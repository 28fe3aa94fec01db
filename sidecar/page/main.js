// Which view the address asks for. A view stops by itself once another is shown.

let generation = 0;

async function route() {
  const mine = ++generation, alive = () => mine === generation;
  const [path, params] = location.hash.replace(/^#\/?/, "").split("?");
  const [kind, ...rest] = path.split("/");
  const id = decodeURIComponent(rest.join("/"));
  tip(null);
  document.getElementById("forget").hidden = !sessionStorage.getItem(KEY);
  for (const node of document.querySelectorAll("nav a")) {
    if (node.dataset.view === (kind === "compare" ? "compare" : "overview")) node.setAttribute("aria-current", "page");
    else node.removeAttribute("aria-current");
  }
  try {
    if (kind === "trajectory" || kind === "request") await record(kind, id, alive);
    else if (kind === "compare") await compare(new URLSearchParams(params), alive);
    else await overview(alive);
  } catch (error) {
    if (!alive()) return;
    if (error.status === 401 || error.status === 403) { askForKey(error.message); return; }
    show(problem(error));
    // A store that restarts is looked for again.
    if (error.status === 0 || error.status >= 500) setTimeout(() => { if (alive()) route(); }, 3000);
  }
}

async function search(event) {
  event.preventDefault();
  const id = new FormData(event.target).get("id").trim();
  if (!id) return;
  const kind = await json(url("trajectories", id)).then(() => "trajectory", (error) => (error.code === "not_found" ? "request" : "trajectory"));
  location.hash = "#/" + kind + "/" + encodeURIComponent(id);
}

document.getElementById("search").addEventListener("submit", search);
document.getElementById("forget").addEventListener("click", () => { sessionStorage.removeItem(KEY); route(); });
for (const node of document.querySelectorAll("footer a:not([href='/docs'])")) node.replaceWith(raw(node.textContent, node.getAttribute("href")));
addEventListener("hashchange", route);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", route);
json("/v1/summary").then(state, () => null);
route();
