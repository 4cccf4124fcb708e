// Sections that Python has written: lines, a table, a chart of points and lines.
function static_section(content) {
  const typeset = texts => texts.map(text => text.replaceAll(" +- ", " ± "));
  const parts = [], lines = typeset(content.lines);
  if (!content.preformatted) parts.push(...lines.map((line, index) => static_line(content, line, index)));
  if (content.chart) {
    const host = el("div", { class: "chart", id: `${content.id}-chart` });
    const names = el("div", { class: "legend", role: "group", "aria-label": "Drawn lines" });
    const hidden = new Set();
    parts.push(names, host);
    subscribers.push(() => static_chart(host, names, content.chart, hidden));
  }
  if (content.heat_map) {
    const host = el("div", { class: "chart", id: `${content.id}-map` });
    parts.push(host);
    subscribers.push(() => heat_map(host, content));
  }
  if (content.note) parts.push(el("p", { class: "note" }, content.note));
  if (content.preformatted) {
    const attributes = { tabindex: 0, role: "region", "aria-label": `${content.title} in words` };
    parts.push(el("pre", attributes, lines.join("\n")));
  }
  if (content.rows.length) parts.push(el("div", { class: "scroll" }, plain_table(content.headings, content.rows.map(typeset))));
  return section(content.id, content.title, ...parts);
}

// A heat map of cells whose texts and colours Python has chosen.
function heat_map(host, content) {
  const { columns, rows } = content.heat_map, longest = texts => 8 + 7 * Math.max(...texts.map(text => text.length));
  const text_width = longest(rows.flatMap(row => row.cells.map(cell => cell ? cell.text : "")));
  const head_width = longest(columns);
  grid(host, { rows, shade: cell => cell.shade, cell: cell => cell.text, head: column => columns[column],
    head_width, text_width, widest: Math.max(64, head_width, text_width),
    describe: (row, column, cell) => cell ? cell.note.replaceAll(" +- ", " ± ") : `${row} ${columns[column]}: no value`,
    label: `${content.title}. Arrow keys move between cells.` });
}

function static_line(content, line, index) {
  if (line.startsWith("moe ")) {
    const command = el("pre", { class: "command", tabindex: 0, role: "region", "aria-label": "command" }, line);
    const copy = el("button", { type: "button", onclick: () => copy_text(line, command, copy) }, "Copy");
    return el("div", { class: "copied" }, command, copy);
  }
  return el("p", { class: content.id === "answer" ? (index ? "answer" : "answer lead") : null }, line);
}

// Copies a text; where the browser does not permit that, selects it.
async function copy_text(text, node, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(node);
  }
}

function static_legend(names, chart, hidden, redraw) {
  const styles = new Map(chart.series.map(each => [each.style, each.name]));
  names.replaceChildren(...[...styles].map(([style, name]) => el("button", { type: "button", class: colour_class(style),
    "aria-pressed": String(!hidden.has(style)), "data-style": style,
    onclick: () => {
      hidden.has(style) ? hidden.delete(style) : hidden.add(style);
      redraw();
      names.querySelector(`[data-style="${style}"]`).focus();
    } }, el("span", { class: "swatch" }), name)));
}

function static_chart(host, names, chart, hidden) {
  static_legend(names, chart, hidden, () => static_chart(host, names, chart, hidden));
  const series = chart.series.filter(each => !hidden.has(each.style)), all = series.flatMap(each => each.points);
  if (!all.length) { host.replaceChildren(el("p", { class: "quiet" }, "Nothing is drawn.")); return; }
  const { root, x, y, width } = axes(host, { xs: all.map(each => each[0]), ys: all.map(each => each[1]),
    logX: chart.log_x, height: 360, x: chart.x, y: chart.y,
    label: `${chart.y} over ${chart.x}. Arrow keys move between points.` });
  const points = [];
  for (const each of series) {
    const group = draw("g", { class: colour_class(each.style) }), places = each.points.map(([a, b]) => [x(a), y(b)]);
    if (each.line) group.append(draw("path", { class: `line ${dash_class(each.style)}`, d: path(places) }));
    places.forEach(([left, top], index) => {
      if (each.mark === "point") group.append(shape(each.style, left, top, 4.5, { class: "point" }));
      if (each.mark === "ring") group.append(draw("circle", { class: "ring", cx: left, cy: top, r: 8 }));
      const [a, b] = each.points[index].map(value => format_number(value));
      const text = `${each.name}\n${chart.y} ${b}\n${chart.x} ${a}`;
      if (each.mark) points.push({ place: { x: left, y: top }, text });
    });
    root.append(group);
  }
  const ring = draw("circle", { class: "ring", r: 8, visibility: "hidden" });
  root.append(ring);
  points.sort((a, b) => a.place.x - b.place.x || b.place.y - a.place.y);
  interactive(root, width, {
    find: place => nearest_item(points, place, 30),
    move: step_through(points),
    show: ({ place, text }) => {
      ring.setAttribute("cx", place.x);
      ring.setAttribute("cy", place.y);
      ring.setAttribute("visibility", "visible");
      return { ...place, text };
    },
    clear: () => ring.setAttribute("visibility", "hidden"),
  });
}
