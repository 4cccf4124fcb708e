// Parallel coordinates: an axis for every setting that varies and for what came out, a line per configuration.
function parallel_section() {
  if (page.axes.length < 2 || page.rows.length < 2) return null;
  const host = el("div", { class: "chart scroll-chart", id: "parallel-chart" });
  const names = el("div", { class: "legend", role: "group", "aria-label": "Drawn configurations" });
  const refresh = () => { legend(names, ordered()); parallel(host); };
  listeners.push(refresh);
  return section("parallel", "Settings and results together", names, el("div", { class: "scroll" }, host),
    el("p", { class: "note" }, "A line is a configuration; better results lie lower on the score's axis. Point at a line, or move with the arrow keys."));
}

function parallel(host) {
  const rows = shown().filter(row => page.axes.some(axis => row.along[axis.name] !== null));
  if (!rows.length) { host.replaceChildren(el("p", { class: "quiet" }, "Nothing is drawn.")); return; }
  const width = Math.max(page.axes.length * 104, Math.floor(host.parentElement.clientWidth) - 2 || 600), height = 330, top = 44, bottom = height - 24;
  const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "application", tabindex: 0, "aria-roledescription": "chart",
    "aria-label": `Parallel coordinates of ${rows.length} configurations. Arrow keys move between them.` });
  root.style.width = `${width}px`;
  const places = page.axes.map((axis, index) => 60 + index * (width - 130) / (page.axes.length - 1));
  const scales = page.axes.map(axis => upright(axis, rows, bottom, top));
  const lines = rows.map(row => {
    const points = page.axes.map((axis, index) => [places[index], scales[index].place(row.along[axis.name])]);
    const node = draw("g", { class: look(row.index) }, draw("path", { class: `line ${dash(row.index)}`, d: path(points) }));
    root.append(node);
    return { row, points, node };
  });
  const close = places[1] - places[0] < 130;
  page.axes.forEach((axis, index) => {
    root.append(draw("path", { class: "axis", d: `M${places[index]},${top}V${bottom}` }));
    root.append(draw("text", { x: places[index], y: close && index % 2 ? 14 : 29, "text-anchor": "middle", "font-weight": "600" }, axis.heading));
    for (const [value, text] of scales[index].marks)
      root.append(draw("text", { class: "quiet halo", x: places[index] - 5, y: value + 4, "text-anchor": "end" }, text));
  });
  host.replaceChildren(root);
  let here = -1;
  const text = row => [row.label, ...page.axes.map(axis => `${axis.heading} ${written(row.along[axis.name])}`)].join("\n");
  const light = chosen => lines.forEach(each => {
    each.node.classList.toggle("faint", chosen !== null && each !== chosen);
    each.node.firstChild.classList.toggle("strong", each === chosen);
  });
  const leave = () => { light(null); tip.hide(); };
  root.addEventListener("pointermove", event => {
    const at = pointer(event, root, width);
    let best = 16, found = null;
    for (const each of lines) for (let index = 1; index < places.length; index += 1) {
      const [[x0, y0], [x1, y1]] = [each.points[index - 1], each.points[index]];
      if (at.x < x0 - 8 || at.x > x1 + 8) continue;
      const away = Math.abs(y0 + (y1 - y0) * Math.min(1, Math.max(0, (at.x - x0) / (x1 - x0))) - at.y);
      if (away < best) { best = away; found = each; }
    }
    if (!found) { leave(); return; }
    here = lines.indexOf(found);
    light(found);
    tip.show(event, text(found.row));
  });
  root.addEventListener("pointerleave", leave);
  root.addEventListener("blur", leave);
  root.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") leave();
    if (!move) return;
    event.preventDefault();
    here = (here + move + lines.length) % lines.length;
    light(lines[here]);
    tip.at(root, places[0], lines[here].points[0][1], width, text(lines[here].row));
  });
}

// Where values stand on an upright axis: results by their size, as numbers of which there are many; few numbers and words in order; what is missing at the foot, below all.
function upright(axis, rows, bottom, top) {
  const values = rows.map(row => row.along[axis.name]), there = values.filter(each => each !== null);
  const numbers = there.filter(isNumber), missing = there.length < values.length, foot = missing ? bottom - 24 : bottom;
  const none = missing ? [[bottom, "-"]] : [];
  if (there.length && numbers.length === there.length && new Set(numbers).size > (axis.result ? 1 : 6)) {
    const log = axis.log && Math.min(...numbers) > 0, place = scale(numbers, foot, top + 8, log, 0);
    return { place: value => value === null ? bottom : place(value), marks: marks_of(place.ticks).map(([tick, text]) => [place(tick), text]).concat(none) };
  }
  const distinct = [...new Set(there)].sort(before), step = distinct.length > 1 ? (foot - top - 8) / (distinct.length - 1) : 0;
  const place = value => value === null ? bottom : distinct.length > 1 ? foot - distinct.indexOf(value) * step : (foot + top) / 2;
  const every = Math.ceil(distinct.length / 12);
  return { place, marks: distinct.filter((_, index) => index % every === 0).map(value => [place(value), cut(written(value), 13)]).concat(none) };
}

