// Loss against sparsity, against FLOPs, and any quantity against any other: points with intervals, Pareto fronts.
const NEARLY_EQUAL = 1.05;

function quantity(name) { return page.quantities.find(each => each.name === name); }

// The Pareto front of each comparable group, from left to right, from all rows of the page, also those not drawn. It is
// empty if a quantity has no better direction.
function fronts_of(across, up) { return page.fronts[`${across.name}|${up.name}`] || []; }

// Widens an axis whose values differ by at most 5 %, so that nearly equal costs are drawn close together.
function with_room(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return high < NEARLY_EQUAL * low ? [...values, low / 1.3, high * 1.3] : values;
}

function points_of_rows(across, up) {
  return shown().map(row => ({ row, x: row.values[across.name], y: row.values[up.name], half: row.interval[up.name] }))
    .filter(each => isNumber(each.x) && isNumber(each.y) && (!across.log || each.x > 0));
}

function interval_bar(x, high, low) {
  return draw("path", { class: "bar", d: `M${x},${high}V${low}M${x - 5},${high}h10M${x - 5},${low}h10` });
}

function scatter(host, nameX, nameY, label) {
  const across = quantity(nameX), up = quantity(nameY), points = points_of_rows(across, up);
  if (!points.length) {
    host.replaceChildren(el("p", { class: "quiet" }, "Nothing is drawn: no configuration shown has both."));
    return;
  }
  const xs = points.map(each => each.x);
  const ys = points.flatMap(each => [each.y - (each.half || 0), each.y + (each.half || 0)]);
  const { root, x, y, width } = axes(host, { xs: across.log ? with_room(xs) : xs, ys, logX: across.log,
    height: 340, x: across.heading, y: up.heading,
    label: `${label}: ${points.length} configurations. Arrow keys move between them.` });
  for (const each of points) each.place = { x: x(each.x), y: y(each.y) };
  const fronts = fronts_of(across, up), directed = across.better && up.better;
  const marked = new Set(directed ? fronts.flat() : page.rows.filter(row => row.pareto).map(row => row.index));
  for (const front of fronts) {
    const steps = front.map(index => points.find(each => each.row.index === index)).filter(Boolean);
    if (steps.length > 1) {
      root.append(draw("path", { class: "front", d: path(steps.map(each => [each.place.x, each.place.y])) }));
    }
  }
  for (const each of points) {
    const { x: left, y: top } = each.place;
    each.node = draw("g", { class: colour_class(each.row.index), "data-row": each.row.index });
    if (isNumber(each.half) && each.half > 0) {
      each.node.append(interval_bar(left, y(each.y + each.half), y(each.y - each.half)));
    }
    each.node.append(shape(each.row.index, left, top, 5.5, { class: "point" }));
    if (marked.has(each.row.index)) each.node.append(draw("circle", { class: "ring", cx: left, cy: top, r: 9.5 }));
    root.append(each.node);
  }
  const text = each => {
    const spread = isNumber(each.half) ? ` ± ${format_number(each.half)}` : "";
    const why = marked.has(each.row.index) ? "\non the Pareto front" : "";
    const x_text = `${across.heading} ${format_number(each.x)}`;
    const y_text = `${up.heading} ${format_number(each.y)}${spread}`;
    return `${each.row.label}\n${y_text}\n${x_text}${why}`;
  };
  const inOrder = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  interactive(root, width, {
    find: place => nearest_item(inOrder, place, 40),
    move: step_through(inOrder),
    show: each => {
      points.forEach(other => other.node.classList.toggle("faint", other !== each));
      return { ...each.place, text: text(each) };
    },
    clear: () => points.forEach(each => each.node.classList.remove("faint")),
  });
}

function scatter_section() {
  if (!page.score || !page.rows.some(row => isNumber(row.values[page.score]))) return null;
  const chart = id => el("div", { class: "chart", id });
  const first = chart("by-sparsity"), second = chart("by-flops"), third = chart("by-any");
  const names = el("div", { class: "legend", role: "group", "aria-label": "Drawn configurations" });
  const select = id => el("select", { id, onchange: refresh });
  const across = select("any-x"), up = select("any-y");
  const entries = page.quantities.map(each => [each.name, each.heading]);
  options(across, entries, quantity("tokens_per_second") ? "tokens_per_second" : page.quantities[0].name);
  options(up, entries, page.score);
  function refresh() {
    legend(names, ordered().filter(row => isNumber(row.values[page.score])));
    if (quantity("sparsity")) scatter(first, "sparsity", page.score, "Loss against sparsity");
    if (quantity("flops_per_token")) scatter(second, "flops_per_token", page.score, "Loss against FLOPs");
    scatter(third, across.value, up.value, "Two quantities of choice");
  }
  subscribers.push(refresh);
  const note = "Bars are 95 % intervals over seeds. A ring marks a configuration on the Pareto front (dashed): no "
    + "other configuration of the same data and budget is better in both quantities. If a quantity has no better "
    + "direction, such as sparsity, rings mark the Pareto front of the table: loss, FLOPs, speed and memory. "
    + "FLOPs within 2 %, and speed, memory and time within 10 %, count as equal. A configuration without another of "
    + "the same data and budget has no ring.";
  const titled = (title, host) => el("div", {}, el("h3", {}, title), host);
  const pair = el("div", { class: "pair" }, titled("Loss against sparsity", first),
    titled("Loss against FLOPs", second));
  const controls = el("div", { class: "controls" }, labelled("across", across), labelled("up", up));
  return section("tradeoffs", "What it costs", names, pair, el("h3", {}, "Any against any"), controls, third,
    el("p", { class: "note" }, note));
}
