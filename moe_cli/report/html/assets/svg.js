// Functions of all charts: elements, numbers, scales, axes. Text is inserted as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 10, DASHES = 4;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function el(tag, attributes, ...children) { return fill(document.createElement(tag), attributes, children); }
function draw(tag, attributes, ...children) { return fill(document.createElementNS(SVG, tag), attributes, children); }

function isNumber(value) { return typeof value === "number" && Number.isFinite(value); }

function format_number(value, digits = 4, thousands = 1e4) {
  if (value === null || value === undefined) return "-";
  if (!isNumber(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e28) return value.toExponential(2);
  if (size >= thousands) {
    const units = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let unit = -1, rest = value;
    while (Math.abs(rest) >= 999.5 && unit < units.length - 1) { rest /= 1000; unit += 1; }
    return Number(rest.toPrecision(digits === 4 ? 3 : digits)) + units[unit];
  }
  return size > 0 && size < 1e-3 ? String(Number(value.toExponential(2))) : String(Number(value.toPrecision(digits)));
}

// The labels of one axis, all in the same unit (9.5k next to 10k), so that no two are equal.
function tick_labels(ticks) {
  const thousands = Math.max(...ticks.map(Math.abs)) >= 1e4 ? 1e3 : 1e4;
  return ticks.map(tick => [tick, format_number(tick, 6, thousands)]);
}

// A scale from numbers to places. Equal numbers are placed in the middle.
function scale(values, from, to, log, pad) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) { low = Math.log10(low); high = Math.log10(high); }
  const room = (high - low) * (pad || 0) || (high === low ? Math.max(Math.abs(high), 1) * (log ? 0.3 : 0.05) : 0);
  low -= room; high += room;
  const place = value => from + ((log ? Math.log10(value) : value) - low) / (high - low) * (to - from);
  place.ticks = ticks(low, high, log, Math.max(2, Math.abs(to - from) / 70));
  place.log = log;
  return place;
}

function ticks(low, high, log, most) {
  if (log) {
    const found = [], marks = high - low > 3 ? [1] : high - low > 1 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
    for (let power = Math.floor(low); power <= high; power += 1)
      for (const mark of marks) {
        const at = power + Math.log10(mark);
        if (at >= low && at <= high) found.push(mark * 10 ** power);
      }
    if (found.length >= 2) return thinned(found, most);
    return ticks(10 ** low, 10 ** high, false, Math.min(most, 4));
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(each => each * power).find(each => each >= rough) || 10 * power;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9 && found.length < 50; at += step)
    found.push(Number(at.toPrecision(12)));
  return found;
}

function thinned(found, most) {
  const every = Math.ceil(found.length / most);
  return found.filter((_, index) => index % every === 0);
}

// An empty chart with its axes: where to draw, and the two scales. `names`: the texts of an axis of categories.
function axes(host, options) {
  const width = Math.max(260, Math.floor(host.clientWidth) || 600), height = options.height;
  const box = { left: 58, right: width - 14, top: 14, bottom: height - 44 };
  const root = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "application", tabindex: 0,
    "aria-roledescription": "chart", "aria-label": options.label });
  const x = scale(options.xs, box.left, box.right, options.logX, options.pad === undefined ? 0.04 : options.pad);
  const y = scale(options.ys, box.bottom, box.top, false, 0.06);
  for (const [tick, text] of tick_labels(y.ticks)) {
    root.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }));
    root.append(draw("text", { class: "quiet", x: box.left - 7, y: y(tick) + 4, "text-anchor": "end" }, text));
  }
  for (const [tick, text] of tick_labels(x.ticks)) {
    root.append(draw("line", { class: "grid", x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom }));
    root.append(draw("text", { class: "quiet", x: x(tick), y: box.bottom + 17, "text-anchor": "middle" }, text));
  }
  root.append(draw("path", { class: "axis", d: `M${box.left},${box.top}V${box.bottom}H${box.right}` }));
  root.append(draw("text", { x: (box.left + box.right) / 2, y: height - 8, "text-anchor": "middle" }, options.x));
  root.append(draw("text", { x: -(box.top + box.bottom) / 2, y: 13, transform: "rotate(-90)", "text-anchor": "middle" },
    options.y));
  host.replaceChildren(root);
  return { root, x, y, box, width, height };
}

function path(points) {
  return points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
}

// Colour, dash and shape of a row, so that rows are distinguishable without colour.
function colour_class(index) { return `k${index % COLOURS}`; }
function dash_class(index) { return `d${Math.floor(index / COLOURS) % DASHES}`; }
function shape(index, x, y, size, attributes) {
  const s = size, kind = (index + Math.floor(index / COLOURS)) % 4;
  if (kind === 0) return draw("circle", { ...attributes, cx: x, cy: y, r: s });
  const outline = [null, `M${x - s},${y - s}h${2 * s}v${2 * s}h${-2 * s}z`,
    `M${x},${y - s * 1.25}L${x + s * 1.15},${y + s}H${x - s * 1.15}z`,
    `M${x},${y - s * 1.35}L${x + s * 1.35},${y}L${x},${y + s * 1.35}L${x - s * 1.35},${y}z`][kind];
  return draw("path", { ...attributes, d: outline });
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) =>
    el("option", { value, selected: String(value) === String(chosen) }, text)));
}

function labelled(text, control) { return el("label", {}, text, control); }

function checkbox(text, checked, change) {
  const box = el("input", { type: "checkbox", checked, onchange: event => change(event.target.checked) });
  return el("label", { class: "flat" }, box, text);
}

function truncate(text, most) { return text.length > most ? `${text.slice(0, most - 1)}…` : text; }

function plain_table(headings, rows) {
  const head = el("tr", {}, headings.map(text => el("th", { scope: "col", class: "left" }, text)));
  const cell = (text, index) =>
    index ? el("td", { class: "left" }, text) : el("th", { scope: "row", class: "left" }, text);
  return el("table", {}, el("thead", {}, head), el("tbody", {}, rows.map(cells => el("tr", {}, cells.map(cell)))));
}
