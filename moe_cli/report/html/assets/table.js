// The table: filter, order and visibility of rows. Charts draw `shown()` and subscribe to changes.
const state = { sort: null, down: false, words: "", hidden: new Set(), open: new Set() };
function shown() { return ordered().filter(row => !state.hidden.has(row.index)); }
function ordered() { return sorted(page.rows.filter(row => matches(row, state.words))); }

const SIGNS = { ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, "<": (a, b) => a < b };

// Returns whether all words match: `expert>=8`, `router=topk`, or a text in the row.
function matches(row, words) {
  return words.toLowerCase().split(/\s+/).every(word => !word || matches_word(row, word));
}

function matches_word(row, word) {
  const parts = word.match(/^([^<>=!]+)(>=|<=|!=|==|=|>|<)(.*)$/);
  if (parts) {
    const value = value_of(row, parts[1]);
    if (value !== undefined) {
      const wanted = parts[3].trim(), number = Number(wanted);
      if (SIGNS[parts[2]]) return isNumber(value) && wanted !== "" && SIGNS[parts[2]](value, number);
      const text = value === null ? "-" : String(value).toLowerCase();
      const equal = text === wanted || (isNumber(value) && wanted !== "" && value === number)
        || (value === null && wanted === "null");
      return (parts[2] === "!=") !== equal;
    }
  }
  return row.text.includes(word);
}

function value_of(row, name) {
  const index = page.columns.findIndex(({ name: key, heading }) =>
    [key, heading].some(each => each.toLowerCase() === name));
  if (index >= 0) return row.sort_keys[index];
  const key = page.settings.names.find(each => each.toLowerCase() === name);
  return key === undefined ? undefined : setting(row, key);
}

function setting(row, name) {
  return Object.hasOwn(row.settings, name) ? row.settings[name] : page.settings.same[name];
}

// Orders numbers before text. Rows without a value come last in both directions.
function compare(a, b) {
  if (isNumber(a) && isNumber(b)) return a - b;
  if (isNumber(a) !== isNumber(b)) return isNumber(a) ? -1 : 1;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sorted(rows) {
  if (state.sort === null) return rows;
  const key = row => row.sort_keys[state.sort];
  const known = rows.filter(row => key(row) !== null).sort((a, b) => compare(key(a), key(b)) * (state.down ? -1 : 1));
  return known.concat(rows.filter(row => key(row) === null));
}

function cell(column, text) {
  const [mean, spread] = text.split(" +- ");
  const interval = spread === undefined ? null : el("span", { class: "spread" }, ` ± ${spread}`);
  const classes = [column.left ? "left" : null, column.name === "verdict" ? "verdict" : null].filter(Boolean);
  return el("td", { class: classes.join(" ") || null }, mean, interval);
}

function mark(row) {
  const marks = [row.mark || null, row.pareto ? "Pareto" : null].filter(Boolean);
  return el("td", { class: "left mark" }, marks.join(", "));
}

function row_of(row) {
  const open = state.open.has(row.index), hidden = state.hidden.has(row.index), several = row.runs.length > 1;
  const drawn = el("input", { type: "checkbox", checked: !hidden, "aria-label": `draw ${row.label}`,
    onchange: event => {
      event.target.checked ? state.hidden.delete(row.index) : state.hidden.add(row.index);
      notify();
    } });
  const more = el("button", { type: "button", "aria-expanded": String(open), "aria-label": `runs of ${row.label}`,
    onclick: () => {
      open ? state.open.delete(row.index) : state.open.add(row.index);
      notify();
      focus_on(row.index);
    }, "data-row": row.index }, open ? "▾" : "▸");
  const seeds = several ? el("span", { class: "quiet seeds" }, `${row.runs.length} seeds`) : null;
  const first = el("td", { class: `left pick ${colour_class(row.index)}` }, drawn, el("span", { class: "swatch" }),
    row.runs.length && !page.by_run ? more : null, seeds);
  const cells = page.columns.map((column, index) => cell(column, row.cells[index]));
  const line = el("tr", { class: [row.best ? "best" : "", hidden ? "off" : ""].join(" ") }, first, mark(row), ...cells);
  return open ? [line, ...row.runs.map(line_of_run)] : [line];
}

function line_of_run(run) {
  const name = el("td", { class: "left name", colspan: 2 }, `seed ${run.seed === null ? "-" : run.seed}`, el("br"),
    [run.id, ...run.tags].join("  "));
  return el("tr", { class: "run" }, name, ...page.columns.map((column, index) => cell(column, run.cells[index])));
}

function focus_on(index) {
  const button = document.querySelector(`button[data-row="${index}"]`);
  if (button) button.focus();
}

function heading(column, index) {
  const here = state.sort === index;
  const order = here ? (state.down ? "descending" : "ascending") : "none";
  const button = el("button", { type: "button", "data-column": column.name, title: "sort", onclick: () => {
    state.down = here ? !state.down : false;
    state.sort = index;
    notify();
    document.querySelectorAll("#rows thead button")[index].focus();
  } }, column.heading, here ? (state.down ? " ▼" : " ▲") : "");
  return el("th", { scope: "col", class: column.left ? "left" : null, "aria-sort": order }, button);
}

function table_section() {
  const host = el("div", { class: "scroll tall", id: "rows", tabindex: 0, role: "region",
    "aria-label": "Table of configurations" });
  const count = el("p", { class: "quiet", "aria-live": "polite", id: "count" });
  const words = el("input", { type: "search", id: "words", autocomplete: "off", spellcheck: "false",
    placeholder: "expert>=8 topk", oninput: event => { state.words = event.target.value; notify(); } });
  const button = (text, act) => el("button", { type: "button", onclick: () => { act(); notify(); } }, text);
  const all = button("Draw all", () => state.hidden.clear());
  const none = button("Draw none", () => page.rows.forEach(row => state.hidden.add(row.index)));
  const refresh = () => {
    const rows = ordered(), at = [host.scrollLeft, host.scrollTop], what = page.by_run ? "run" : "configuration";
    const head = el("tr", {}, el("th", { scope: "col", class: "left" }, "drawn"),
      el("th", { scope: "col", class: "left" }, el("span", { class: "unseen" }, "mark")), ...page.columns.map(heading));
    const text = `A row per ${what}; intervals are 95 %, each for one comparison`;
    const caption = el("caption", { class: "unseen" }, text);
    host.replaceChildren(el("table", {}, caption, el("thead", {}, head), el("tbody", {}, rows.map(row_of))));
    [host.scrollLeft, host.scrollTop] = at;
    const none = rows.length ? "" : ": none matches all words";
    count.textContent = `${rows.length} of ${page.rows.length} ${what}s${none}`;
  };
  subscribers.push(refresh);
  const hint = "Show rows that match all words: a text, or a column or setting with =, !=, >=, <=, >, <";
  return section("table", "Table", el("div", { class: "controls" }, labelled(hint, words), all, none), count, host);
}
