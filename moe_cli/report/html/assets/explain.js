// A text by its experts: each token has the number and the colour of its first expert in the selected layer. The
// pointer and arrow keys show all layers.
const MAX_CHOICES = 8, LONG_WORD = 24;

// Decodes `moe_cli.report.html.explain_page.packed`: for each token [expert, weight, kept], the strongest first.
function unpacked(text) {
  return text.split(",").map(token => token.split(" ").filter(Boolean).map(word => {
    const number = Math.abs(parseInt(word, 36));
    return [Math.floor(number / page.stride), (number % page.stride) / 100, !word.startsWith("-")];
  }));
}

function choice_text([expert, weight, kept]) { return `E${expert + 1} ${weight.toFixed(2)}${kept ? "" : " dropped"}`; }

function token_text(index) {
  const lines = page.layers.map(layer => {
    const choices = layer.choices[index], more = choices.length - MAX_CHOICES;
    const text = choices.slice(0, MAX_CHOICES).map(choice_text).join(", ") || "no expert";
    return `${layer.name}   ${text}${more > 0 ? `, ${more} more` : ""}`;
  });
  return [`${page.tokens[index]}   token ${index + 1} of ${page.tokens.length}`, ...lines].join("\n");
}

// Keeps words together. Line breaks are those of the text; each window of the model begins a new paragraph.
function text_lines(nodes) {
  const parts = [], breaks = new Set(page.breaks), spaces = new Set(page.spaces);
  let word = null;
  nodes.forEach((node, index) => {
    if (index % page.window === 0 && nodes.length > page.window) {
      parts.push(el("p", { class: "note" }, `window ${index / page.window + 1}`));
      word = null;
    }
    if (!word || word.childNodes.length >= LONG_WORD) {
      word = el("span", { class: "word" });
      parts.push(word);
    }
    word.append(node);
    if (breaks.has(index)) parts.push(el("br"));
    if (breaks.has(index) || spaces.has(index)) word = null;
  });
  return parts;
}

// The colour of each expert. Experts whose numbers differ by a multiple of COLOURS have the same.
function colour_key(num_experts) {
  const experts = Array.from({ length: Math.min(num_experts, COLOURS) }, (_, index) => index);
  const entries = experts.map(expert =>
    el("span", { class: colour_class(expert) }, el("span", { class: "swatch" }), `E${expert + 1}`));
  if (num_experts > COLOURS) entries.push(el("span", {}, `E${COLOURS + 1} has the colour of E1, and so on`));
  return ["First expert of a token:", ...entries];
}

function text_section() {
  const select = el("select", { id: "layer", onchange: refresh });
  options(select, page.layers.map((layer, index) => [index, layer.name]), page.chosen);
  const nodes = page.tokens.map(text => el("span", {}, el("span", {}, text), el("small")));
  const places = new Map(nodes.map((node, index) => [node, index]));
  const host = el("div", { class: "tokens", tabindex: 0, role: "application", "aria-roledescription": "text by experts",
    "aria-label": "The text, token by token. Left and right arrow keys move between tokens, up and down between "
      + "layers." },
    text_lines(nodes));
  const key = el("p", { class: "legend", id: "expert-colours" });
  let at = null;
  function refresh() {
    const layer = page.layers[Number(select.value)];
    key.replaceChildren(...colour_key(layer.load.length));
    nodes.forEach((node, index) => {
      const first = layer.choices[index][0];
      const tint = first && first[2] ? ` tint ${colour_class(first[0])}` : "";
      node.className = `token${tint}${index === at ? " here" : ""}`;
      node.lastChild.textContent = first ? `${first[0] + 1}${first[2] ? "" : "x"}` : "-";
    });
  }
  const leave = () => { if (at !== null) nodes[at].classList.remove("here"); at = null; tooltip.hide(); };
  const enter = index => { leave(); at = index; nodes[at].classList.add("here"); return token_text(at); };
  const point = event => {
    const node = event.target.closest(".token");
    if (node) tooltip.show(event, enter(places.get(node))); else leave();
  };
  host.addEventListener("pointermove", point);
  host.addEventListener("pointerdown", point);
  host.addEventListener("pointerleave", leave);
  host.addEventListener("blur", leave);
  host.addEventListener("keydown", event => {
    if (event.key === "Escape") leave();
    const last = nodes.length - 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 0, ArrowDown: 0, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const turn = { ArrowUp: -1, ArrowDown: 1 }[event.key] || 0;
    select.value = String(Math.max(0, Math.min(page.layers.length - 1, Number(select.value) + turn)));
    if (turn) refresh();
    const text = enter(at === null ? (step > 1 ? last : 0) : Math.max(0, Math.min(last, at + step)));
    nodes[at].scrollIntoView({ block: "nearest" });
    const box = nodes[at].getBoundingClientRect();
    tooltip.show({ clientX: box.left, clientY: box.bottom - 10 }, text);
    announce(text);
  });
  refresh();
  const controls = el("div", { class: "controls" }, labelled("layer", select));
  return section("text", "The text and its experts", controls, key, host);
}

for (const layer of page.layers) layer.choices = unpacked(layer.choices);
const load_chart = el("div", { class: "chart" });
open_page([
  text_section(),
  section("measures", "What the routing measures", el("h3", {}, "Load of every expert: 1 is a fair share"), load_chart,
    el("div", { class: "scroll" }, plain_table(page.headings, page.rows)),
    page.legend.map(line => el("p", { class: "note" }, line))),
], [page.generated], () => load_map(load_chart, page.layers.map(layer => ({ name: layer.name, cells: layer.load }))));
