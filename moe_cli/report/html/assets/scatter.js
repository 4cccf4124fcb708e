// Loss against sparsity, against FLOPs, against anything: points with intervals, and the Pareto front.
const NEARLY_EQUAL = 1.05;

function quantity(name) { return page.quantities.find(each => each.name === name); }

// The rule of report/pareto.py for two quantities that have a better side; their tolerances are in the page's data.
function beats(one, other, pair) {
  const cost = (value, each) => each.better > 0 ? (value > 0 ? 1 / value : Infinity) : value;
  const sides = pair.map((each, index) => ({ a: cost(one[index], each), b: cost(other[index], each), same: each.same }));
  const exact = sides.filter(each => each.same === 1), close = sides.filter(each => each.same > 1);
  const asGood = sides.every(each => each.a <= each.b * each.same);
  if (asGood && exact.some(each => each.a < each.b)) return true;
  return exact.every(each => each.a === each.b) && close.every(each => each.a <= each.b) && close.some(each => each.a * each.same < each.b);
}

// The rows that no other row of the same data and budget beats in both. All rows of the page count, also those not drawn.
function front_of(along, up) {
  if (up.name === page.score && along.name === "flops_per_token") return page.rows.filter(row => row.front_by_flops);
  if (!along.better || !up.better) return page.rows.filter(row => row.front);
  const at = row => [row.at[along.name], row.at[up.name]];
  const rows = page.rows.filter(row => at(row).every(isNumber));
  return rows.filter(row => !rows.some(other => other.league === row.league && beats(at(other), at(row), [along, up])));
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
  const marked = new Set(front_of(along, up).map(row => row.index));
  const front = along.better && up.better ? points.filter(each => marked.has(each.row.index)).sort((a, b) => a.x - b.x || b.y - a.y) : [];
  for (const league of new Set(front.map(each => each.row.league))) {
    const steps = front.filter(each => each.row.league === league);
    if (steps.length > 1) root.append(draw("path", { class: "front", d: path(steps.map(each => [x(each.x), y(each.y)])) }));
  }
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

// "2 %: training FLOP per token; 10 %: tokens per second"
function tolerances() {
  const factors = [...new Set(page.quantities.map(each => each.same))].filter(same => same > 1).sort();
  return factors.map(same => `${Math.round(100 * (same - 1))} %: ${page.quantities.filter(each => each.same === same).map(each => each.heading).join(", ")}`).join("; ");
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
    el("p", { class: "note" }, `Bars are 95 % intervals over seeds. A ring marks the Pareto front (dashed): no other configuration of the same data and budget beats it in both quantities. Where a quantity has no better side, such as sparsity, the ring is that of the table: loss, FLOPs, speed and memory. Differences within a tolerance count as equal (${tolerances()}).`));
}
