// Sections that were written beforehand: lines, a table, a chart of points and lines.
function told_section(given) {
  const parts = [], lines = given.lines.map(line => line.replaceAll(" +- ", " ± "));
  if (!given.aligned) parts.push(...lines.map((line, index) => line.startsWith("moe ")
    ? el("pre", { class: "command", tabindex: 0, role: "region", "aria-label": "command" }, line)
    : el("p", { class: given.id === "answer" ? (index ? "answer" : "answer lead") : null }, line)));
  if (given.chart) {
    const host = el("div", { class: "chart", id: `${given.id}-chart` }), names = el("div", { class: "legend", role: "group", "aria-label": "Drawn lines" });
    const hidden = new Set();
    parts.push(names, host);
    listeners.push(() => told_chart(host, names, given.chart, hidden));
  }
  if (given.note) parts.push(el("p", { class: "note" }, given.note));
  if (given.aligned) parts.push(el("pre", { tabindex: 0, role: "region", "aria-label": `${given.title} in words` }, lines.join("\n")));
  if (given.rows.length) parts.push(el("div", { class: "scroll" }, plain_table(given.headings, given.rows)));
  return section(given.id, given.title, ...parts);
}

function told_legend(names, given, hidden, again) {
  const looks = new Map(given.series.map(each => [each.look, each.name]));
  names.replaceChildren(...[...looks].map(([index, name]) => el("button", { type: "button", class: look(index), "aria-pressed": String(!hidden.has(index)), "data-look": index,
    onclick: () => {
      hidden.has(index) ? hidden.delete(index) : hidden.add(index);
      again();
      names.querySelector(`[data-look="${index}"]`).focus();
    } }, el("span", { class: "swatch" }), name)));
}

function told_chart(host, names, given, hidden) {
  told_legend(names, given, hidden, () => told_chart(host, names, given, hidden));
  const series = given.series.filter(each => !hidden.has(each.look)), all = series.flatMap(each => each.points);
  if (!all.length) { host.replaceChildren(el("p", { class: "quiet" }, "Nothing is drawn.")); return; }
  const { root, x, y, width } = axes(host, { xs: all.map(each => each[0]), ys: all.map(each => each[1]), logX: given.log_x, logY: given.log_y, height: 360,
    x: given.x, y: given.y, label: `${given.y} over ${given.x}. Arrow keys move between points.` });
  const points = [];
  for (const each of series) {
    const group = draw("g", { class: look(each.look) }), places = each.points.map(([a, b]) => [x(a), y(b)]);
    if (each.line) group.append(draw("path", { class: `line ${dash(each.look)}`, d: path(places) }));
    places.forEach(([a, b], index) => {
      if (each.mark === "point") group.append(shape(each.look, a, b, 4.5, { class: "point" }));
      if (each.mark === "ring") group.append(draw("circle", { class: "ring", cx: a, cy: b, r: 8 }));
      if (each.mark) points.push({ at: [a, b], text: `${each.name}\n${given.y} ${written(each.points[index][1])}\n${given.x} ${written(each.points[index][0])}` });
    });
    root.append(group);
  }
  const ring = draw("circle", { class: "ring", r: 8, visibility: "hidden" });
  root.append(ring);
  points.sort((a, b) => a.at[0] - b.at[0] || b.at[1] - a.at[1]);
  let here = -1;
  const leave = () => { tip.hide(); ring.setAttribute("visibility", "hidden"); };
  const choose = index => {
    here = index;
    ring.setAttribute("cx", points[here].at[0]); ring.setAttribute("cy", points[here].at[1]); ring.setAttribute("visibility", "visible");
    return points[here];
  };
  root.addEventListener("pointermove", event => {
    const place = pointer(event, root, width), away = points.map(each => Math.hypot(each.at[0] - place.x, each.at[1] - place.y));
    const best = away.indexOf(Math.min(...away));
    if (best < 0 || away[best] > 30) { leave(); return; }
    tip.show(event, choose(best).text);
  });
  root.addEventListener("pointerleave", leave);
  root.addEventListener("blur", leave);
  root.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") leave();
    if (!move || !points.length) return;
    event.preventDefault();
    const { at, text } = choose((here + move + points.length) % points.length);
    tip.at(root, at[0], at[1], width, text);
  });
}
