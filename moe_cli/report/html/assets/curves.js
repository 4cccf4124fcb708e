// Learning curves: a line for each configuration (the mean over seeds), thin lines for seeds, and a cursor.
function legend(host, rows) {
  host.replaceChildren(...rows.map(row => el("button", { type: "button", class: colour_class(row.index),
    "data-row": row.index, title: row.label, "aria-pressed": String(!state.hidden.has(row.index)),
    onclick: event => {
      state.hidden.has(row.index) ? state.hidden.delete(row.index) : state.hidden.add(row.index);
      const place = event.currentTarget.dataset.row;
      notify();
      const button = host.querySelector(`[data-row="${place}"]`);
      if (button) button.focus();
    } }, el("span", { class: "swatch" }), row.short_label)));
}

// Points of a run: [x, y] in order; x by steps, tokens or FLOPs.
function points_of(series, along, log) {
  const row = page.rows[series.row], flops = row.flops;
  const by_tokens = along === "flops" ? series.tokens.map(each => each * flops) : series.tokens;
  const xs = along === "step" ? series.step : by_tokens;
  return xs.map((x, index) => [x, series.value[index]])
    .filter(([x, y]) => isNumber(x) && isNumber(y) && (!log || x > 0));
}

// Returns the mean, the least and the largest value over seeds at each place where all seeds have a point.
function mean_of(curves) {
  if (curves.length === 1) return curves[0].map(([x, y]) => [x, y, y, y]);
  const at = new Map();
  for (const curve of curves) for (const [x, y] of curve) at.set(x, [...(at.get(x) || []), y]);
  return [...at].filter(([, ys]) => ys.length === curves.length).sort((a, b) => a[0] - b[0])
    .map(([x, ys]) => [x, ys.reduce((a, b) => a + b) / ys.length, Math.min(...ys), Math.max(...ys)]);
}

function curves_section() {
  if (!page.curves.series.length) return null;
  const host = el("div", { class: "chart", id: "curves-chart" });
  const names = el("div",
    { class: "legend", id: "curves-legend", role: "group", "aria-label": "Drawn configurations" });
  const select = id => el("select", { id, onchange: refresh });
  const metric = select("curves-metric"), along = select("curves-along"), part = select("curves-part");
  let log = false, seeds = page.rows.length <= 4;
  options(metric, page.curves.metrics.map((each, index) => [index, each]), 0);
  options(part, [["", "automatic"], ["whole", "all"], ["half", "second half"]], "");
  options(along, [["tokens", "tokens"], ["step", "steps"], ["flops", "training FLOPs"]], "tokens");
  const controls = el("div", { class: "controls" }, labelled("measure", metric), labelled("over", along),
    labelled("part", part), checkbox("log scale", log, on => { log = on; refresh(); }),
    checkbox("each seed", seeds, on => { seeds = on; refresh(); }));

  function refresh() {
    const chosen = page.curves.series.filter(each => each.metric === Number(metric.value));
    const having = new Set(chosen.map(each => each.row)), points = each => points_of(each, along.value, log);
    legend(names, ordered().filter(row => having.has(row.index)));
    const rows = shown().filter(row => having.has(row.index) && (along.value !== "flops" || isNumber(row.flops)));
    const ends = chosen.flatMap(each => points(each).map(([at]) => at)), last = Math.max(...ends);
    const from = part.value === "half" ? (Math.min(...ends) + last) / 2 : -Infinity;
    const drawn = rows.map(row => {
      const curves = chosen.filter(each => each.row === row.index)
        .map(each => points(each).filter(([at]) => at >= from)).filter(each => each.length);
      const mean = curves.length ? mean_of(curves) : [];
      return { row, curves, mean: mean.length ? mean : (curves[0] || []).map(([x, y]) => [x, y, y, y]) };
    }).filter(each => each.mean.length);
    if (!drawn.length) {
      const text = "Nothing is drawn: choose configurations above or in the table.";
      host.replaceChildren(el("p", { class: "quiet" }, text));
      return;
    }
    plot(host, drawn, page.curves.metrics[Number(metric.value)], along.selectedOptions[0].textContent,
      { log, seeds, whole: part.value === "whole" });
  }
  subscribers.push(refresh);
  const note = "Lines are means over seeds, shades reach from the lowest to the highest seed. Point at a line, or move "
    + "with the arrow keys, to read it.";
  return section("curves", "Learning curves", controls, names, host, el("p", { class: "note" }, note));
}

function plot(host, drawn, metric, along, { log, seeds, whole }) {
  const all = drawn.flatMap(each => seeds ? each.curves.flat() : each.mean), ys = all.map(each => each[1]);
  const { root, x, y, box, width } = axes(host, { xs: all.map(each => each[0]), ys: whole ? ys : spread_of(ys),
    logX: log, pad: 0.01, height: 380, x: along, y: metric,
    label: `${metric} over ${along} of ${drawn.length} configurations. `
      + "Arrow keys: left and right along a line, up and down between lines." });
  const frame = { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top };
  const clip = draw("g", { "clip-path": "url(#within)" });
  root.append(draw("clipPath", { id: "within" }, draw("rect", frame)), clip);
  for (const each of drawn) {
    each.group = draw("g", { class: colour_class(each.row.index) });
    if (each.curves.length > 1) {
      const upper = each.mean.map(([a, , , high]) => [x(a), y(high)]);
      const lower = each.mean.map(([a, , low]) => [x(a), y(low)]).reverse();
      each.group.append(draw("path", { class: "band", d: path(upper.concat(lower)) + "z" }));
      for (const curve of seeds ? each.curves : []) {
        each.group.append(draw("path", { class: "seed", d: path(curve.map(([a, b]) => [x(a), y(b)])) }));
      }
    }
    const line = path(each.mean.map(([a, b]) => [x(a), y(b)]));
    each.group.append(draw("path", { class: `line ${dash_class(each.row.index)}`, d: line }));
    clip.append(each.group);
  }
  const cursor = draw("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const dot = draw("circle", { class: "ring", r: 5, visibility: "hidden" });
  root.append(cursor, dot);
  interactive(root, width, {
    find: place => nearest_on_lines(drawn, place, x, y),
    move: (item, key) => move_along(drawn, item || { line: 0, index: 0 }, key),
    show: ({ line, index }) => {
      const each = drawn[line], [a, b, low, high] = each.mean[index];
      drawn.forEach(other =>
        other.group.setAttribute("class", `${colour_class(other.row.index)}${other === each ? "" : " faint"}`));
      cursor.setAttribute("x1", x(a));
      cursor.setAttribute("x2", x(a));
      dot.setAttribute("cx", x(a));
      dot.setAttribute("cy", y(b));
      for (const node of [cursor, dot]) node.setAttribute("visibility", "visible");
      const seeds_range = `\n${format_number(low)} to ${format_number(high)} over ${each.curves.length} seeds`;
      const value = format_number(b) + (low === high ? "" : seeds_range);
      const text = `${each.row.label}\n${metric} ${value}\nat ${format_number(a)} ${along}`;
      return { x: x(a), y: y(b), text };
    },
    clear: () => {
      drawn.forEach(each => each.group.setAttribute("class", colour_class(each.row.index)));
      for (const node of [cursor, dot]) node.setAttribute("visibility", "hidden");
    },
  });
}

// Returns the line and the point on it nearest to a place. Vertical distance counts three times.
function nearest_on_lines(drawn, place, x, y) {
  let best = Infinity, found = null;
  drawn.forEach((each, line) => {
    const index = nearest(each.mean, place.x, x), [a, b] = each.mean[index];
    const distance = Math.hypot((x(a) - place.x) / 3, y(b) - place.y);
    if (distance < best) { best = distance; found = { line, index }; }
  });
  return found;
}

function move_along(drawn, item, key) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e9],
    End: [0, 1e9] }[key];
  if (!step) return null;
  const line = (item.line + step[0] + drawn.length) % drawn.length;
  return { line, index: Math.max(0, Math.min(drawn[line].mean.length - 1, item.index + step[1])) };
}

// Omits high values at the beginning from the axis if they would flatten the rest of the curves.
function spread_of(values) {
  const inOrder = [...values].sort((a, b) => a - b), low = inOrder[0];
  const high = inOrder[Math.floor(0.8 * (inOrder.length - 1))];
  const end = high + 1.2 * (high - low);
  return inOrder[inOrder.length - 1] <= end || end === low ? values : [...values.filter(each => each <= end), end];
}

function nearest(mean, at, x) {
  let best = 0;
  mean.forEach(([a], index) => {
    if (Math.abs(x(a) - at) < Math.abs(x(mean[best][0]) - at)) best = index;
  });
  return best;
}
