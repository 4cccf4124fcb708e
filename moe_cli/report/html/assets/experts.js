// Expert usage of one run: the load of each expert of each layer, pairs that a token chooses together, domains.
const EDGES = [0.01, 0.4, 0.75, 0.92, 1.08, 1.35, 1.8, 3];
const SHADES = ["dead", "under 0.4", "0.4 to 0.75", "0.75 to 0.92", "even", "1.08 to 1.35", "1.35 to 1.8", "1.8 to 3",
  "3 and more"];

function shade(load) { const found = EDGES.findIndex(edge => load < edge); return found < 0 ? EDGES.length : found; }

function experts_section() {
  if (!page.experts.length) return null;
  const select = el("select", { id: "experts-run", onchange: refresh });
  const layer = el("select", { id: "experts-layer", onchange: detail });
  const host = el("div", { class: "chart", id: "experts-chart" }), more = el("div", { id: "experts-more" });
  select.replaceChildren(...page.rows.map(runs_of_row).filter(Boolean));
  let chosen = null;
  function refresh() {
    chosen = page.experts[Number(select.value)];
    const largest = chosen.layers.map(each => Math.max(...each.load));
    options(layer, chosen.layers.map((each, index) => [index, `L${each.layer + 1}`]),
      largest.indexOf(Math.max(...largest)));
    load_map(host, chosen.layers.map((each, index) =>
      ({ name: `L${each.layer + 1}`, cells: each.load, note: `MaxVio ${signed(largest[index] - 1)}` })));
    detail();
  }
  function detail() {
    const parts = details_of(chosen.layers[Number(layer.value)]);
    more.replaceChildren(...parts.map(part => part.node));
    parts.forEach(part => part.draw());
  }
  subscribers.push(refresh);
  const controls = el("div", { class: "controls" }, labelled("run", select), labelled("details of layer", layer));
  return section("experts", "Experts", controls, shade_key(), host, more);
}

function shade_key() {
  const box = index => draw("svg", { width: 14, height: 14, "aria-hidden": "true" },
    draw("rect", { class: `h${index}`, width: 14, height: 14 }));
  return el("p", { class: "note key" }, el("span", { class: "shade" }, "Share of a fair load:"),
    SHADES.map((text, index) => el("span", { class: "shade" }, box(index), ` ${text}`)));
}

function runs_of_row(row) {
  const runs = page.experts.map((each, index) => [each, index]).filter(([each]) => each.row === row.index);
  return runs.length ? el("optgroup", { label: row.label }, runs.map(([each, index]) =>
    el("option", { value: index }, `${row.label}   seed ${each.seed === null ? "-" : each.seed}`))) : null;
}

// The load of every expert, a row per layer.
function load_map(host, rows) {
  grid(host, { rows, shade, cell: value => value.toFixed(2),
    describe: (row, column, value) => `${row}, expert E${column + 1}\n${value.toFixed(2)} of a fair load`,
    label: "Load of every expert, a row per layer. Arrow keys move between cells." });
}

// The details of one layer: parts with a node, and `draw`, to be called when the node is in the page.
function details_of(each) {
  const parts = [], name = `L${each.layer + 1}`;
  if (each.pairs.length) {
    const describe = (row, column, value) => row === `E${column + 1}` ? `${row} itself`
      : `${value} % of the tokens that chose ${row} also chose E${column + 1}`;
    parts.push(block(`Chosen together in ${name}: % of the row's tokens that also chose the column`,
      each.pairs.map((cells, index) => ({ name: `E${index + 1}`, cells })), describe, true));
  }
  if (each.domains.length) {
    parts.push(block(`Domains in ${name}: % of the assignments of each domain`,
      each.domains.map(([domain, cells]) => ({ name: domain, cells })),
      (row, column, value) => `${value} % of the assignments of ${row} went to E${column + 1}`));
  }
  if (each.tokens.some(found => found.length)) {
    const title = `Tokens that choose each expert of ${name} more often than by chance: % of the token's assignments`;
    const rows = each.tokens.map((found, index) => [`E${index + 1}`, found.join("   ") || "-"]);
    const node = el("details", {}, el("summary", {}, title), plain_table(["expert", "tokens"], rows));
    parts.push({ node, draw: () => {} });
  }
  return parts;
}

function signed(share) { return `${share > 0 ? "+" : ""}${(100 * share).toFixed(0)} %`; }

function block(title, rows, describe, without_diagonal = false) {
  const host = el("div", { class: "chart" }), largest = Math.max(...rows.flatMap(row => row.cells), 1e-9);
  const warm = value => Math.min(8, 4 + Math.floor(4.99 * value / largest));
  const cell = (value, row, column) => without_diagonal && row === column ? "" : String(value);
  const label = `${title}. Arrow keys move between cells.`;
  return { node: el("div", {}, el("h3", {}, title), host),
    draw: () => grid(host, { rows, shade: warm, cell, describe, label }) };
}

// A heat map: rows with a name, cells and an optional note; null is an empty cell. Texts are written if they fit.
function grid(host, options) {
  const { rows } = options, head = options.head || (column => `E${column + 1}`), columns = Math.max(...rows.map(row => row.cells.length));
  const width = Math.max(260, Math.floor(host.clientWidth) || 600), noted = rows.some(row => row.note) ? 98 : 4;
  const left = Math.min(130, 12 + 7 * Math.max(...rows.map(row => Math.min(16, row.name.length))));
  const size = Math.min(options.widest || 64, (width - left - noted) / columns), tall = Math.max(15, Math.min(30, size));
  const root = draw("svg", { viewBox: `0 0 ${width} ${26 + rows.length * tall}`, role: "application", tabindex: 0,
    "aria-roledescription": "heat map", "aria-label": options.label });
  const middle = column => left + (column + 0.5) * size, every = Math.ceil((options.head_width || 30) / size);
  for (let column = 0; column < columns; column += every) {
    root.append(draw("text", { class: "quiet", x: middle(column), y: 13, "text-anchor": "middle" }, head(column)));
  }
  const cells = rows.map((row, index) => {
    const y = 20 + index * tall, base = y + tall / 2 + 4;
    root.append(draw("text", { x: left - 6, y: base, "text-anchor": "end" }, truncate(row.name, 16)));
    if (row.note) root.append(draw("text", { class: "quiet", x: left + columns * size + 6, y: base }, row.note));
    return row.cells.map((value, column) => {
      if (value === null) {
        const empty = { class: "cell none", x: left + column * size, y, width: size, height: tall };
        return root.appendChild(draw("rect", empty));
      }
      const kind = options.shade(value);
      const node = draw("rect", { class: `cell h${kind}`, x: left + column * size, y, width: size, height: tall });
      const text = { class: `t${kind}`, x: middle(column), y: base, "text-anchor": "middle", "pointer-events": "none" };
      root.append(node);
      if (size >= (options.text_width || 34)) root.append(draw("text", text, options.cell(value, index, column)));
      return node;
    });
  });
  host.replaceChildren(root);
  const clear = () => root.querySelectorAll(".here").forEach(node => node.classList.remove("here"));
  interactive(root, width, {
    find: place => {
      const row = Math.floor((place.y - 20) / tall), column = Math.floor((place.x - left) / size);
      return cells[row] && cells[row][column] ? { row, column } : null;
    },
    move: (item, key) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
      if (!step) return null;
      const from = item || { row: 0, column: -step[1] }, row = (from.row + step[0] + rows.length) % rows.length;
      return { row, column: (from.column + step[1] + cells[row].length) % cells[row].length };
    },
    show: ({ row, column }) => {
      clear();
      cells[row][column].classList.add("here");
      const text = options.describe(rows[row].name, column, rows[row].cells[column]);
      return { x: left + (column + 1) * size, y: 20 + (row + 1) * tall, text };
    },
    clear,
  });
}
