// What the experts of one run did: the load of every expert of every layer, and who was chosen with whom, by which domain.
const EDGES = [0.01, 0.4, 0.75, 0.92, 1.08, 1.35, 1.8, 3];
const SHADES = ["dead", "under 0.4", "0.4 to 0.75", "0.75 to 0.92", "even", "1.08 to 1.35", "1.35 to 1.8", "1.8 to 3", "3 and more"];

function shade(load) { const found = EDGES.findIndex(edge => load < edge); return found < 0 ? EDGES.length : found; }

function experts_section() {
  if (!page.experts.length) return null;
  const select = el("select", { id: "experts-run", onchange: refresh }), layer = el("select", { id: "experts-layer", onchange: detail });
  const host = el("div", { class: "chart", id: "experts-chart" }), more = el("div", { id: "experts-more" });
  const key = el("p", { class: "note key" }, el("span", { class: "shade" }, "Share of a fair load:"), SHADES.map((text, index) =>
    el("span", { class: "shade" }, draw("svg", { width: 14, height: 14, "aria-hidden": "true" }, draw("rect", { class: `h${index}`, width: 14, height: 14 })), ` ${text}`)));
  const groups = page.rows.filter(row => page.experts.some(each => each.row === row.index)).map(row =>
    el("optgroup", { label: row.label }, page.experts.map((each, index) => [each, index]).filter(([each]) => each.row === row.index)
      .map(([each, index]) => el("option", { value: index }, `${row.label}   seed ${each.seed === null ? "-" : each.seed}`))));
  select.replaceChildren(...groups);
  let chosen = null;
  function refresh() {
    chosen = page.experts[Number(select.value)];
    const worst = chosen.layers.reduce((best, each, index) => Math.max(...each.load) > Math.max(...chosen.layers[best].load) ? index : best, 0);
    options(layer, chosen.layers.map((each, index) => [index, `L${each.layer + 1}`]), worst);
    grid(host, { rows: chosen.layers.map(each => ({ name: `L${each.layer + 1}`, cells: each.load, note: `worst ${signed(Math.max(...each.load) - 1)}` })),
      shade, cell: value => value.toFixed(2), say: (row, column, value) => `${row}, expert E${column + 1}\n${value.toFixed(2)} of a fair load`,
      label: "Load of every expert, a row per layer. Arrow keys move between cells." });
    detail();
  }
  function detail() {
    const each = chosen.layers[Number(layer.value)], parts = [];
    if (each.pairs.length) parts.push(block(`Chosen together in L${each.layer + 1}, % of the row's tokens that chose the column too`,
      each.pairs.map((cells, index) => ({ name: `E${index + 1}`, cells })), (row, column, value) => row === `E${column + 1}` ? `${row} itself` : `of the tokens of ${row}, ${value} % chose E${column + 1} too`, true));
    if (each.domains.length) parts.push(block(`Domains in L${each.layer + 1}, % of each one's assignments`, each.domains.map(([name, cells]) => ({ name, cells })),
      (row, column, value) => `of the assignments of ${row}, ${value} % went to E${column + 1}`));
    if (each.tokens.some(found => found.length)) parts.push(el("details", {}, el("summary", {}, `Tokens that choose each expert of L${each.layer + 1} more than chance, % of each one's assignments`),
      plain_table(["expert", "tokens"], each.tokens.map((found, index) => [`E${index + 1}`, found.join("   ") || "-"]))));
    more.replaceChildren(...parts.map(part => part.node || part));
    parts.forEach(part => part.draw && part.draw());
  }
  listeners.push(refresh);
  return section("experts", "Experts", el("div", { class: "controls" }, labelled("run", select), labelled("details of layer", layer)), key, host, more);
}

function signed(share) { const text = (100 * share).toFixed(0); return `${share > 0 ? "+" : ""}${text} %`; }

function block(title, rows, say, itself = false) {
  const host = el("div", { class: "chart" }), largest = Math.max(...rows.flatMap(row => row.cells), 1e-9);
  const node = el("div", {}, el("h3", {}, title), host);
  const warm = value => Math.min(8, 4 + Math.floor(4.99 * value / largest));
  return { node, draw: () => grid(host, { rows, shade: warm, cell: (value, row, column) => itself && row === column ? "" : String(value), say, label: `${title}. Arrow keys move between cells.` }) };
}

// A heat map: rows with a name, cells and perhaps a note; numbers are written where there is room.
function grid(host, options) {
  const { rows } = options, columns = Math.max(...rows.map(row => row.cells.length));
  const width = Math.max(260, Math.floor(host.clientWidth) || 600), left = Math.min(130, 12 + 7 * Math.max(...rows.map(row => Math.min(16, row.name.length))));
  const noted = rows.some(row => row.note) ? 98 : 4, size = Math.min(64, (width - left - noted) / columns), tall = Math.max(15, Math.min(30, size));
  const height = 20 + rows.length * tall + 6;
  const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "application", tabindex: 0, "aria-roledescription": "heat map", "aria-label": options.label });
  const cells = [];
  const every = Math.ceil(30 / size);
  for (let column = 0; column < columns; column += every)
    root.append(draw("text", { class: "quiet", x: left + (column + 0.5) * size, y: 13, "text-anchor": "middle" }, `E${column + 1}`));
  rows.forEach((row, index) => {
    const y = 20 + index * tall;
    root.append(draw("text", { x: left - 6, y: y + tall / 2 + 4, "text-anchor": "end" }, cut(row.name, 16)));
    cells.push(row.cells.map((value, column) => {
      const kind = options.shade(value), node = draw("rect", { class: `cell h${kind}`, x: left + column * size, y, width: size, height: tall });
      root.append(node);
      if (size >= 34) root.append(draw("text", { class: `t${kind}`, x: left + (column + 0.5) * size, y: y + tall / 2 + 4, "text-anchor": "middle", "pointer-events": "none" }, options.cell(value, index, column)));
      return node;
    }));
    if (row.note) root.append(draw("text", { class: "quiet", x: left + columns * size + 6, y: y + tall / 2 + 4 }, row.note));
  });
  host.replaceChildren(root);
  let at = null;
  const leave = () => { if (at) cells[at[0]][at[1]].classList.remove("here"); at = null; tip.hide(); };
  const enter = (row, column) => { leave(); at = [row, column]; cells[row][column].classList.add("here"); return options.say(rows[row].name, column, rows[row].cells[column]); };
  root.addEventListener("pointermove", event => {
    const place = pointer(event, root, width), row = Math.floor((place.y - 20) / tall), column = Math.floor((place.x - left) / size);
    if (!cells[row] || !cells[row][column]) { leave(); return; }
    tip.show(event, enter(row, column));
  });
  root.addEventListener("pointerleave", leave);
  root.addEventListener("blur", leave);
  root.addEventListener("keydown", event => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (event.key === "Escape") leave();
    if (!move) return;
    event.preventDefault();
    const [row, column] = at || [0, -move[1]];
    const next = (row + move[0] + rows.length) % rows.length;
    const there = (column + move[1] + rows[next].cells.length) % rows[next].cells.length;
    tip.at(root, left + (there + 1) * size, 20 + (next + 1) * tall, width, enter(next, there));
  });
}
