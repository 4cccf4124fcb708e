// Pointer, keyboard and tooltip of a chart, the same for all charts; and the charts to draw again after a change.
const subscribers = [];

function notify() { for (const refresh of subscribers) refresh(); }

// Returns the position of a pointer in the units of a chart.
function pointer(event, root, width) {
  const box = root.getBoundingClientRect();
  return { x: (event.clientX - box.left) * width / box.width, y: (event.clientY - box.top) * width / box.width };
}

const tooltip = {
  show(event, text) {
    const node = document.getElementById("tooltip");
    node.textContent = text;
    node.hidden = false;
    const box = node.getBoundingClientRect(), page = document.documentElement;
    const left = Math.min(event.clientX + 14, page.clientWidth - box.width - 6);
    const above = event.clientY + 18 + box.height > page.clientHeight;
    node.style.left = `${Math.max(4, left) + window.scrollX}px`;
    node.style.top = `${(above ? event.clientY - box.height - 12 : event.clientY + 18) + window.scrollY}px`;
  },
  at(root, x, y, width, text) {
    const box = root.getBoundingClientRect(), by = box.width / width;
    tooltip.show({ clientX: box.left + x * by, clientY: box.top + y * by }, text);
    announce(text);
  },
  hide() { document.getElementById("tooltip").hidden = true; },
};

// For screen readers.
function announce(text) { document.getElementById("live-region").textContent = text; }

// Makes the items of a chart readable by pointer and by keyboard.
//   find(place): the item at a place in the units of the chart; null: none
//   move(item, key): the item that a key leads to; null: the key does not move. The first item is null.
//   show(item): marks an item, and returns its text and its place {text, x, y}
//   clear(): removes the marks
function interactive(root, width, { find, move, show, clear }) {
  let item = null;
  const leave = () => { clear(); tooltip.hide(); };
  root.addEventListener("pointermove", event => {
    const found = find(pointer(event, root, width));
    if (found === null) { leave(); return; }
    item = found;
    tooltip.show(event, show(item).text);
  });
  root.addEventListener("pointerleave", leave);
  root.addEventListener("blur", leave);
  root.addEventListener("keydown", event => {
    if (event.key === "Escape") leave();
    const next = move(item, event.key);
    if (next === null) return;
    event.preventDefault();
    item = next;
    const { x, y, text } = show(item);
    tooltip.at(root, x, y, width, text);
  });
}

// Returns the next or previous item for an arrow key; the last is followed by the first.
function step_through(items) {
  return (item, key) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
    return step && items.length ? items[(items.indexOf(item) + step + items.length) % items.length] : null;
  };
}

// Returns the item whose place {x, y} is nearest to a place; null if none is within reach.
function nearest_item(items, place, reach) {
  const distance = item => Math.hypot(item.place.x - place.x, item.place.y - place.y);
  const near = items.reduce((best, item) => (best && distance(best) <= distance(item) ? best : item), null);
  return near && distance(near) <= reach ? near : null;
}
