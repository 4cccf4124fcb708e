// Learning curves: a line per configuration (the mean over seeds), thin ones per seed, a cursor that reads them.
function legend(host, rows) {
  host.replaceChildren(...rows.map(row => el("button", { type: "button", class: look(row.index), "data-row": row.index,
    "aria-pressed": String(!state.hidden.has(row.index)),
    onclick: event => {
      state.hidden.has(row.index) ? state.hidden.delete(row.index) : state.hidden.add(row.index);
      const again = event.currentTarget.dataset.row;
      changed();
      const button = host.querySelector(`[data-row="${again}"]`);
      if (button) button.focus();
    } }, el("span", { class: "swatch" }), row.label)));
}

// Points of a run: [x, y] in order; x by steps, tokens or FLOPs.
function points_of(series, along, log) {
  const row = page.rows[series.row], flops = row.flops;
  const xs = along === "step" ? series.step : along === "tokens" ? series.tokens : series.tokens.map(each => each * flops);
  return xs.map((x, index) => [x, series.value[index]]).filter(([x, y]) => isNumber(x) && isNumber(y) && (!log || x > 0));
}

// The mean over seeds wherever all of them have a point, and how far they reach.
function mean_of(curves) {
  if (curves.length === 1) return curves[0].map(([x, y]) => [x, y, y, y]);
  const at = new Map();
  for (const curve of curves) for (const [x, y] of curve) at.set(x, [...(at.get(x) || []), y]);
  return [...at].filter(([, ys]) => ys.length === curves.length).sort((a, b) => a[0] - b[0])
    .map(([x, ys]) => [x, ys.reduce((a, b) => a + b) / ys.length, Math.min(...ys), Math.max(...ys)]);
}

function curves_section() {
  if (!page.curves.series.length) return null;
  const host = el("div", { class: "chart", id: "curves-chart" }), names = el("div", { class: "legend", id: "curves-legend", role: "group", "aria-label": "Drawn configurations" });
  const metric = el("select", { id: "curves-metric", onchange: refresh }), along = el("select", { id: "curves-along", onchange: refresh });
  const part = el("select", { id: "curves-part", onchange: refresh });
  let log = false, seeds = page.rows.length <= 4;
  options(metric, page.curves.metrics.map((each, index) => [index, each]), 0);
  options(part, [["", "automatic"], ["whole", "all"], ["half", "second half"]], "");
  options(along, [["tokens", "tokens"], ["step", "steps"], ["flops", "training FLOPs"]], "tokens");
  const controls = el("div", { class: "controls" }, labelled("measure", metric), labelled("over", along),
    labelled("part", part),
    ticked("log scale", log, on => { log = on; refresh(); }), ticked("each seed", seeds, on => { seeds = on; refresh(); }));

  function refresh() {
    const chosen = page.curves.series.filter(each => each.metric === Number(metric.value));
    const having = new Set(chosen.map(each => each.row));
    legend(names, ordered().filter(row => having.has(row.index)));
    const rows = shown().filter(row => having.has(row.index) && (along.value !== "flops" || isNumber(row.flops)));
    const ends = chosen.flatMap(each => points_of(each, along.value, log).map(([at]) => at)), last = Math.max(...ends);
    const from = part.value === "half" ? (Math.min(...ends) + last) / 2 : -Infinity;
    const drawn = rows.map(row => {
      const curves = chosen.filter(each => each.row === row.index).map(each => points_of(each, along.value, log).filter(([at]) => at >= from)).filter(each => each.length);
      const mean = curves.length ? mean_of(curves) : [];
      return { row, curves, mean: mean.length ? mean : (curves[0] || []).map(([x, y]) => [x, y, y, y]) };
    }).filter(each => each.mean.length);
    if (!drawn.length) { host.replaceChildren(el("p", { class: "quiet" }, "Nothing is drawn: choose configurations above or in the table.")); return; }
    plot(host, drawn, page.curves.metrics[Number(metric.value)], along.selectedOptions[0].textContent, { log, seeds, whole: part.value === "whole" });
  }
  listeners.push(refresh);
  return section("curves", "Learning curves", controls, names, host,
    el("p", { class: "note" }, "Lines are means over seeds, shades reach from the least to the largest seed. Point at a line, or move with the arrow keys, to read it."));
}

function plot(host, drawn, metric, along, { log, seeds, whole }) {
  const all = drawn.flatMap(each => seeds ? each.curves.flat() : each.mean);
  const chart = axes(host, { xs: all.map(each => each[0]), ys: whole ? all.map(each => each[1]) : spread_of(all.map(each => each[1])), logX: log, pad: 0.01, height: 380, x: along, y: metric,
    label: `${metric} over ${along} of ${drawn.length} configurations. Arrow keys: left and right along a line, up and down between lines.` });
  const { root, x, y, box, width } = chart, clip = draw("g", {});
  root.append(draw("clipPath", { id: "within" }, draw("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top })));
  clip.setAttribute("clip-path", "url(#within)");
  root.append(clip);
  for (const each of drawn) {
    each.group = draw("g", { class: look(each.row.index) });
    if (each.curves.length > 1) {
      const upper = each.mean.map(([a, , , high]) => [x(a), y(high)]), lower = each.mean.map(([a, , low]) => [x(a), y(low)]).reverse();
      each.group.append(draw("path", { class: "band", d: path(upper.concat(lower)) + "z" }));
      if (seeds) for (const curve of each.curves) each.group.append(draw("path", { class: "seed", d: path(curve.map(([a, b]) => [x(a), y(b)])) }));
    }
    each.group.append(draw("path", { class: `line ${dash(each.row.index)}`, d: path(each.mean.map(([a, b]) => [x(a), y(b)])) }));
    clip.append(each.group);
  }
  const cursor = draw("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const dot = draw("circle", { class: "ring", r: 5, visibility: "hidden" });
  root.append(cursor, dot);
  let line = 0, place = 0;
  const show = (event) => {
    const each = drawn[line], [a, b, low, high] = each.mean[place];
    drawn.forEach(other => { other.group.setAttribute("class", `${look(other.row.index)}${other === each ? "" : " faint"}`); });
    cursor.setAttribute("x1", x(a)); cursor.setAttribute("x2", x(a));
    dot.setAttribute("cx", x(a)); dot.setAttribute("cy", y(b));
    cursor.setAttribute("visibility", "visible"); dot.setAttribute("visibility", "visible");
    const reach = low === high ? "" : `\n${written(low)} to ${written(high)} over ${each.curves.length} seeds`;
    const text = `${each.row.label}\n${metric} ${written(b)}${reach}\nat ${written(a)} ${along}`;
    event ? tip.show(event, text) : tip.at(root, x(a), y(b), width, text);
  };
  const leave = () => {
    tip.hide();
    drawn.forEach(each => each.group.setAttribute("class", look(each.row.index)));
    cursor.setAttribute("visibility", "hidden"); dot.setAttribute("visibility", "hidden");
  };
  root.addEventListener("pointermove", event => {
    const at = pointer(event, root, width);
    let best = Infinity;
    drawn.forEach((each, index) => {
      const near = nearest(each.mean, at.x, x), [a, b] = each.mean[near];
      const away = Math.hypot((x(a) - at.x) / 3, y(b) - at.y);
      if (away < best) { best = away; line = index; place = near; }
    });
    show(event);
  });
  root.addEventListener("pointerleave", leave);
  root.addEventListener("blur", leave);
  root.addEventListener("keydown", event => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e9], End: [0, 1e9] }[event.key];
    if (event.key === "Escape") leave();
    if (!moves) return;
    event.preventDefault();
    line = (line + moves[0] + drawn.length) % drawn.length;
    place = Math.max(0, Math.min(drawn[line].mean.length - 1, place + moves[1]));
    show(null);
  });
}

// Where high values at the beginning would flatten all that follows, the axis ends below them.
function spread_of(values) {
  const inOrder = [...values].sort((a, b) => a - b), high = inOrder[Math.floor(0.8 * (inOrder.length - 1))], low = inOrder[0];
  const end = high + 1.2 * (high - low);
  return inOrder[inOrder.length - 1] <= end || end === low ? values : [...values.filter(each => each <= end), end];
}

function nearest(mean, at, x) {
  let best = 0;
  mean.forEach(([a], index) => { if (Math.abs(x(a) - at) < Math.abs(x(mean[best][0]) - at)) best = index; });
  return best;
}
