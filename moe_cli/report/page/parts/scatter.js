// Loss against sparsity, against FLOPs, against anything: points with intervals, and what nothing beats in both.
const LESS_IS_BETTER = -1, NEARLY_EQUAL = 1.05;

function quantity(name) { return page.quantities.find(each => each.name === name); }

// The rows of which no other of the same data and budget has both as little or less of x and of the loss, and less of one.
function front_of(points, better) {
  if (!better) return [];
  return points.filter(p => !points.some(q => q.row.league === p.row.league
    && (q.x - p.x) * better >= 0 && q.y <= p.y && (q.x !== p.x || q.y !== p.y)));
}

// Costs that lie within a few per cent of each other are as good as equal: the axis goes beyond them, so that they stand close.
function with_room(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return high < NEARLY_EQUAL * low ? [...values, low / 1.3, high * 1.3] : values;
}

function scatter(host, nameX, nameY, label) {
  const along = quantity(nameX), up = quantity(nameY);
  const points = shown().map(row => ({ row, x: row.at[nameX], y: row.at[nameY], half: nameY === "val_bpb" || nameY === "val_loss" ? row.half[nameY] : null }))
    .filter(each => isNumber(each.x) && isNumber(each.y) && (!along.log || each.x > 0));
  if (!points.length) { host.replaceChildren(el("p", { class: "quiet" }, "Nothing is drawn: no configuration shown has both.")); return; }
  const ends = points.flatMap(each => [each.y - (each.half || 0), each.y + (each.half || 0)]);
  const { root, x, y, width } = axes(host, { xs: along.log ? with_room(points.map(each => each.x)) : points.map(each => each.x), ys: ends, logX: along.log, logY: false, height: 340, x: along.heading, y: up.heading,
    label: `${label}: ${points.length} configurations. Arrow keys move between them.` });
  const front = front_of(points, along.better).sort((a, b) => a.x - b.x || b.y - a.y);
  for (const league of new Set(front.map(each => each.row.league))) {
    const steps = front.filter(each => each.row.league === league);
    if (steps.length > 1) root.append(draw("path", { class: "front", d: path(steps.map(each => [x(each.x), y(each.y)])) }));
  }
  const marked = along.better ? new Set(front.map(each => each.row.index)) : new Set(points.filter(each => each.row.front).map(each => each.row.index));
  for (const each of points) {
    const at = [x(each.x), y(each.y)], group = draw("g", { class: look(each.row.index), "data-row": each.row.index });
    if (isNumber(each.half) && each.half > 0) {
      const high = y(each.y + each.half), low = y(each.y - each.half);
      group.append(draw("path", { class: "bar", d: `M${at[0]},${high}V${low}M${at[0] - 5},${high}h10M${at[0] - 5},${low}h10` }));
    }
    group.append(shape(each.row.index, at[0], at[1], 5.5, { class: "point" }));
    if (marked.has(each.row.index)) group.append(draw("circle", { class: "ring", cx: at[0], cy: at[1], r: 9.5 }));
    root.append(group);
    each.node = group;
  }
  const inOrder = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  let here = -1;
  const text = each => {
    const spread = isNumber(each.half) ? ` ± ${written(each.half)}` : "";
    const why = marked.has(each.row.index) ? "\non the Pareto front" : "";
    return `${each.row.label}\n${up.heading} ${written(each.y)}${spread}\n${along.heading} ${written(each.x)}${why}`;
  };
  const leave = () => { tip.hide(); points.forEach(each => each.node.classList.remove("faint")); };
  const light = each => points.forEach(other => other.node.classList.toggle("faint", other !== each));
  root.addEventListener("pointermove", event => {
    const at = pointer(event, root, width);
    const near = inOrder.reduce((best, each) => away(each, at) < away(best, at) ? each : best);
    if (away(near, at) > 40) { leave(); return; }
    here = inOrder.indexOf(near);
    light(near);
    tip.show(event, text(near));
  });
  const away = (each, at) => Math.hypot(x(each.x) - at.x, y(each.y) - at.y);
  root.addEventListener("pointerleave", leave);
  root.addEventListener("blur", leave);
  root.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") leave();
    if (!move) return;
    event.preventDefault();
    here = (here + move + inOrder.length) % inOrder.length;
    const each = inOrder[here];
    light(each);
    tip.at(root, x(each.x), y(each.y), width, text(each));
  });
}

function scatter_section() {
  if (!page.score || !page.rows.some(row => isNumber(row.at[page.score]))) return null;
  const first = el("div", { class: "chart", id: "by-sparsity" }), second = el("div", { class: "chart", id: "by-flops" }), third = el("div", { class: "chart", id: "by-any" });
  const names = el("div", { class: "legend", role: "group", "aria-label": "Drawn configurations" });
  const across = el("select", { id: "any-x", onchange: refresh }), up = el("select", { id: "any-y", onchange: refresh });
  const taken = page.quantities.find(each => each.name === "tokens_per_second") ? "tokens_per_second" : page.quantities[0].name;
  options(across, page.quantities.map(each => [each.name, each.heading]), taken);
  options(up, page.quantities.map(each => [each.name, each.heading]), page.score);
  function refresh() {
    legend(names, ordered().filter(row => isNumber(row.at[page.score])));
    if (quantity("sparsity")) scatter(first, "sparsity", page.score, "Loss against sparsity");
    if (quantity("flops_per_token")) scatter(second, "flops_per_token", page.score, "Loss against FLOPs");
    scatter(third, across.value, up.value, "Two quantities of choice");
  }
  listeners.push(refresh);
  return section("tradeoffs", "What it costs", names, el("div", { class: "pair" },
    el("div", {}, el("h3", {}, "Loss against sparsity"), first), el("div", {}, el("h3", {}, "Loss against FLOPs"), second)),
    el("h3", {}, "Any against any"), el("div", { class: "controls" }, labelled("across", across), labelled("up", up)), third,
    el("p", { class: "note" }, "Bars are 95 % intervals over seeds. A ring marks the Pareto front (dashed): what nothing of the same data and budget beats in both. Sparsity is no cost: there the ring is that of the table, what nothing beats in loss, FLOPs, speed and memory at once."));
}
