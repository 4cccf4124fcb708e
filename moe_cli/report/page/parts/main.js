// The page: reads its content, builds the sections, and draws again when the window or the rows shown change.
function section(id, title, ...parts) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title`, tabindex: -1 }, title), ...parts);
}

// A section that was written beforehand: lines, a table, a chart of points and lines.
function told_section(given) {
  const parts = given.lines.map(line => el("p", { class: given.id === "answer" ? "answer" : null }, line));
  let redraw = null;
  if (given.chart) {
    const host = el("div", { class: "chart" });
    parts.push(host);
    redraw = () => told_chart(host, given.chart);
    listeners.push(redraw);
  }
  if (given.rows.length) parts.push(el("div", { class: "scroll" }, plain_table(given.headings, given.rows)));
  return section(given.id, given.title, ...parts);
}

function told_chart(host, given) {
  const all = given.series.flatMap(each => each.points);
  if (!all.length) return;
  const { root, x, y } = axes(host, { xs: all.map(each => each[0]), ys: all.map(each => each[1]), logX: given.log_x, logY: given.log_y, height: 360,
    x: given.x, y: given.y, label: `${given.y} over ${given.x}` });
  given.series.forEach((each, index) => {
    const group = draw("g", { class: look(index) }), points = each.points.map(([a, b]) => [x(a), y(b)]);
    if (each.line) group.append(draw("path", { class: `line ${dash(index)}`, d: path(points) }));
    else points.forEach(([a, b]) => group.append(shape(index, a, b, 4.5, { class: "point" })));
    group.append(draw("title", {}, each.name));
    root.append(group);
  });
  host.append(el("div", { class: "legend" }, given.series.map((each, index) => el("span", { class: look(index) }, el("span", { class: "swatch" }), each.name))));
}

const THEMES = ["auto", "light", "dark"];
const preference = window.matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
try { theme = THEMES.includes(localStorage.getItem("moe-theme")) ? localStorage.getItem("moe-theme") : "auto"; } catch { /* kept nowhere */ }

function paint(chosen) {
  const dark = chosen === "auto" ? preference.matches : chosen === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = `Colours: ${chosen}`;
}

function start() {
  document.getElementById("title").textContent = page.title;
  document.getElementById("above").replaceChildren(...page.above.map(line => el("p", { class: "quiet" }, line)));
  const tools = document.getElementById("tools"), button = document.getElementById("theme");
  tools.hidden = false;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("moe-theme", theme); } catch { /* kept nowhere */ }
    paint(theme);
  });
  preference.addEventListener("change", () => paint(theme));
  window.addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; });
  window.addEventListener("afterprint", () => paint(theme));
  document.getElementById("print").addEventListener("click", () => window.print());
  paint(theme);
  const before_table = page.sections.filter(each => each.first).map(told_section), after = page.sections.filter(each => !each.first).map(told_section);
  const sections = [...before_table, table_section(), curves_section(), scatter_section(), parallel_section(), experts_section(), ...after, differ_section()].filter(Boolean);
  document.getElementById("main").replaceChildren(...sections);
  document.getElementById("contents").replaceChildren(...sections.map(each => el("a", { href: `#${each.id}` }, each.firstChild.textContent)));
  document.getElementById("footer").replaceChildren(...[...page.below, ...page.notes, page.made].map(line => el("p", {}, line)));
  changed();
  let width = window.innerWidth, waiting = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    window.clearTimeout(waiting);
    waiting = window.setTimeout(changed, 120);
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hide(); });
  document.documentElement.dataset.ready = "yes";
}

const page = JSON.parse(document.getElementById("content").textContent);
start();
