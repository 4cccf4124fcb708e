// Functions of every page: sections, colours, printing, and drawing again when the window is resized.
function section(id, title, ...parts) {
  const heading = el("h2", { id: `${id}-title`, tabindex: -1 }, title);
  return el("section", { id, "aria-labelledby": `${id}-title` }, heading, ...parts);
}

const THEMES = ["auto", "light", "dark"];
const preference = window.matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
try {
  const stored = localStorage.getItem("moe-theme");
  theme = THEMES.includes(stored) ? stored : "auto";
} catch { /* the browser stores nothing */ }

function paint(chosen) {
  const dark = chosen === "auto" ? preference.matches : chosen === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = `Colours: ${chosen}`;
}

// Builds the page from its sections and the lines below them. `redraw` draws the charts, which depend on the width.
function open_page(sections, below, redraw) {
  document.getElementById("title").textContent = page.title;
  document.getElementById("above").replaceChildren(...page.above.map(line => el("p", { class: "quiet" }, line)));
  const tools = document.getElementById("tools"), button = document.getElementById("theme");
  tools.hidden = false;
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("moe-theme", theme); } catch { /* the browser stores nothing */ }
    paint(theme);
  });
  preference.addEventListener("change", () => paint(theme));
  window.addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; });
  window.addEventListener("afterprint", () => paint(theme));
  document.getElementById("print").addEventListener("click", () => window.print());
  paint(theme);
  document.getElementById("main").replaceChildren(...sections);
  document.getElementById("contents").replaceChildren(...sections.map(each =>
    el("a", { href: `#${each.id}` }, each.firstChild.textContent)));
  document.getElementById("footer").replaceChildren(...below.map(line => el("p", {}, line.replaceAll(" +- ", " ± "))));
  redraw();
  let width = window.innerWidth, waiting = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    window.clearTimeout(waiting);
    waiting = window.setTimeout(redraw, 120);
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape") tooltip.hide(); });
  document.documentElement.dataset.ready = "yes";
}

const page = JSON.parse(document.getElementById("content").textContent);
