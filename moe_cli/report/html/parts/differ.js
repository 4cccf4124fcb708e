// Two configurations side by side: only the settings in which they differ. And what varies over all of them.
function differ_section() {
  if (page.rows.length < 2) return null;
  const first = el("select", { id: "differ-a", onchange: refresh }), second = el("select", { id: "differ-b", onchange: refresh });
  const host = el("div", { class: "scroll wide" });
  const entries = page.rows.map(row => [row.index, row.label]);
  options(first, entries, page.rows[0].index);
  options(second, entries, page.rows[page.rows.length - 1].index);
  function refresh() {
    const [a, b] = [page.rows[Number(first.value)], page.rows[Number(second.value)]];
    const names = page.settings.names.filter(name => setting(a, name) !== setting(b, name));
    if (!names.length) { host.replaceChildren(el("p", { class: "quiet" }, "No setting differs.")); return; }
    host.replaceChildren(plain_table(["setting", a.label, b.label], names.map(name => [name, told(setting(a, name)), told(setting(b, name))])));
  }
  refresh();
  const same = Object.keys(page.settings.same).length;
  return section("differences", "Configurations", el("div", { class: "controls" }, labelled("one", first), labelled("other", second)), host,
    el("details", {}, el("summary", {}, `The same for all: ${same} settings`),
      el("div", { class: "scroll wide" }, plain_table(["setting", "value"], Object.entries(page.settings.same).map(([name, value]) => [name, told(value)])))));
}

function told(value) { return value === null || value === undefined ? "-" : String(value); }
