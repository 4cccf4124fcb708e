// Which rows are shown, in which order; the table of them. Charts ask `shown()` and are told of changes.
const state = { sort: null, down: false, words: "", hidden: new Set(), open: new Set() };
const listeners = [];

function changed() { for (const listen of listeners) listen(); }
function shown() { return ordered().filter(row => !state.hidden.has(row.index)); }
function ordered() { return sorted(page.rows.filter(row => holds(row, state.words))); }

const SIGNS = { ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, "<": (a, b) => a < b };

// Every word must hold: `expert>=8`, `router=topk`, or text that stands anywhere in the row.
function holds(row, words) { return words.toLowerCase().split(/\s+/).every(word => !word || word_holds(row, word)); }

function word_holds(row, word) {
  const parts = word.match(/^([^<>=!]+)(>=|<=|!=|==|=|>|<)(.*)$/);
  if (parts) {
    const value = value_of(row, parts[1]);
    if (value !== undefined) {
      const asked = parts[3].trim(), number = Number(asked);
      if (SIGNS[parts[2]]) return isNumber(value) && asked !== "" && SIGNS[parts[2]](value, number);
      const text = value === null ? "-" : String(value).toLowerCase();
      const equal = text === asked || (isNumber(value) && asked !== "" && value === number) || (value === null && asked === "null");
      return (parts[2] === "!=") !== equal;
    }
  }
  return row.text.includes(word);
}

function value_of(row, name) {
  const index = page.columns.findIndex(column => column.name.toLowerCase() === name || column.heading.toLowerCase() === name);
  if (index >= 0) return row.values[index];
  const key = page.settings.names.find(each => each.toLowerCase() === name);
  return key === undefined ? undefined : setting(row, key);
}

function setting(row, name) {
  return Object.hasOwn(row.settings, name) ? row.settings[name] : page.settings.same[name];
}

// Numbers before text, what has no value last, whichever way.
function before(a, b) {
  if (isNumber(a) && isNumber(b)) return a - b;
  if (isNumber(a) !== isNumber(b)) return isNumber(a) ? -1 : 1;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sorted(rows) {
  if (state.sort === null) return rows;
  const there = rows.filter(row => row.values[state.sort] !== null), gone = rows.filter(row => row.values[state.sort] === null);
  there.sort((a, b) => before(a.values[state.sort], b.values[state.sort]) * (state.down ? -1 : 1));
  return there.concat(gone);
}

function cell(column, text) {
  const [mean, spread] = text.split(" +- ");
  return el("td", { class: column.left ? "left" : null }, mean, spread === undefined ? null : el("span", { class: "spread" }, ` ± ${spread}`));
}

function mark(row) {
  const marks = [row.mark || null, row.front ? "Pareto" : null].filter(Boolean);
  return el("td", { class: "left mark" }, marks.join(", "));
}

function row_of(row) {
  const open = state.open.has(row.index), several = row.runs.length > 1;
  const pick = el("input", { type: "checkbox", checked: !state.hidden.has(row.index), "aria-label": `draw ${row.label}`,
    onchange: event => { event.target.checked ? state.hidden.delete(row.index) : state.hidden.add(row.index); changed(); } });
  const more = el("button", { type: "button", "aria-expanded": String(open), "aria-label": `runs of ${row.label}`,
    onclick: () => { open ? state.open.delete(row.index) : state.open.add(row.index); changed(); focus_on(row.index); }, "data-row": row.index },
    open ? "▾" : "▸");
  const first = el("td", { class: `left pick ${look(row.index)}` }, pick, el("span", { class: "swatch" }), row.runs.length && !page.by_run ? more : null,
    several ? el("span", { class: "quiet seeds" }, `${row.runs.length} seeds`) : null);
  const cells = page.columns.map((column, index) => cell(column, row.cells[index]));
  const lines = [el("tr", { class: [row.best ? "best" : "", state.hidden.has(row.index) ? "off" : ""].join(" ") }, first, mark(row), ...cells)];
  if (open) for (const run of row.runs) {
    const name = el("td", { class: "left name", colspan: 2 }, `seed ${run.seed === null ? "-" : run.seed}`, el("br"), [run.id, ...run.tags].join("  "));
    lines.push(el("tr", { class: "run" }, name, ...page.columns.map((column, index) => cell(column, run.cells[index]))));
  }
  return lines;
}

function focus_on(index) {
  const button = document.querySelector(`button[data-row="${index}"]`);
  if (button) button.focus();
}

function heading(column, index) {
  const here = state.sort === index;
  const button = el("button", { type: "button", "data-column": column.name, title: "sort", onclick: () => {
    state.down = here ? !state.down : false; state.sort = index; changed();
    document.querySelectorAll("#rows thead button")[index].focus();
  } }, column.heading, here ? (state.down ? " ▼" : " ▲") : "");
  return el("th", { scope: "col", class: column.left ? "left" : null, "aria-sort": here ? (state.down ? "descending" : "ascending") : "none" }, button);
}

function table_section() {
  const host = el("div", { class: "scroll tall", id: "rows", tabindex: 0, role: "region", "aria-label": "Table of configurations" });
  const count = el("p", { class: "quiet", "aria-live": "polite", id: "count" });
  const words = el("input", { type: "search", id: "words", autocomplete: "off", spellcheck: "false", placeholder: "expert>=8 topk",
    oninput: event => { state.words = event.target.value; changed(); } });
  const all = el("button", { type: "button", onclick: () => { state.hidden.clear(); changed(); } }, "Draw all");
  const none = el("button", { type: "button", onclick: () => { page.rows.forEach(row => state.hidden.add(row.index)); changed(); } }, "Draw none");
  const refresh = () => {
    const rows = ordered(), at = [host.scrollLeft, host.scrollTop];
    const what = page.by_run ? "run" : "configuration";
    const head = el("tr", {}, el("th", { scope: "col", class: "left" }, "drawn"), el("th", { scope: "col", class: "left" }, el("span", { class: "unseen" }, "mark")), ...page.columns.map(heading));
    host.replaceChildren(el("table", {}, el("caption", { class: "unseen" }, `A row per ${what}; intervals are 95 %, each for one comparison`), el("thead", {}, head),
      el("tbody", {}, rows.map(row_of))));
    [host.scrollLeft, host.scrollTop] = at;
    count.textContent = `${rows.length} of ${page.rows.length} ${what}s` + (rows.length ? "" : ": none has all these words");
  };
  listeners.push(refresh);
  const hint = "Words that must hold: text, or a column or setting with =, !=, >=, <=, >, <";
  return section("table", "Table", el("div", { class: "controls" }, labelled(hint, words), all, none), count, host);
}
