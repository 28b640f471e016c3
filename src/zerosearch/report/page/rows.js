"use strict";
// A list of any length: only the rows in view are in the page.

const ROW = 76; // pixels, as in the style sheet
const MARGIN = 8; // rows made above and below

class Rows {
  /** `make` gives the content of the button of an item, `choose` is told of a click. */
  constructor(box, make, choose) {
    Object.assign(this, { box, make, choose, items: [], chosen: null });
    this.list = element("ol");
    box.append(this.list);
    box.addEventListener("scroll", () => this.show(), { passive: true });
    box.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.show()).observe(box);
  }

  set(items) {
    this.items = items;
    this.list.style.height = `${items.length * ROW}px`;
    this.list.replaceChildren();
    this.box.scrollTop = 0;
    this.show();
  }

  show() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - MARGIN);
    const last = Math.min(this.items.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + MARGIN);
    const there = new Map([...this.list.children].map((row) => [Number(row.dataset.place), row]));
    there.forEach((row, place) => { if (place < first || place >= last) row.remove(); });
    for (let place = first; place < last; place++) if (!there.has(place)) this.list.append(this.row(place));
  }

  row(place) {
    const item = this.items[place];
    const button = element("button", { type: "button", "aria-current": String(item === this.chosen) }, ...this.make(item));
    button.addEventListener("click", () => this.choose(item));
    const row = element("li", { "aria-setsize": this.items.length, "aria-posinset": place + 1 }, button);
    row.dataset.place = place;
    row.style.top = `${place * ROW}px`;
    return row;
  }

  mark(item) {
    this.chosen = item;
    for (const row of this.list.children) {
      row.firstChild.setAttribute("aria-current", String(this.items[row.dataset.place] === item));
    }
  }

  onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = event.target.closest("li");
    if (!step || !row) return;
    event.preventDefault();
    const place = Math.min(this.items.length - 1, Math.max(0, Number(row.dataset.place) + step));
    const top = place * ROW;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    if (top + ROW > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + ROW - this.box.clientHeight;
    this.show();
    this.list.querySelector(`[data-place="${place}"] button`)?.focus();
  }
}
