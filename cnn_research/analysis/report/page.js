"use strict";
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 230, MARGIN = { top: 8, right: 12, bottom: 24, left: 50 };

function shape(parent, tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return parent.appendChild(made);
}

function node(parent, tag, attributes = {}, text = "") {
  const made = Object.assign(document.createElement(tag), attributes);
  if (text) made.textContent = text;
  return parent.appendChild(made);
}

function colour(group, groups) {
  return groups > 8 ? `hsl(${Math.round((360 * group) / groups)} 62% 52%)` : `var(--line-${group % 8})`;
}

/* 1, 2 or 5 times a power of ten, so that about `count` of them fit. */
function linearTicks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-6; index++) ticks.push(index * step);
  return ticks;
}

function logTicks(low, high) {
  const decades = [], ticks = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
    decades.push(10 ** power);
    ticks.push(10 ** power, 2 * 10 ** power, 5 * 10 ** power);
  }
  const inside = (tick) => tick >= low && tick <= high;
  return ticks.filter(inside).length > 7 ? decades.filter(inside) : ticks.filter(inside);
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function written(value, percent) {
  if (percent) return `${(100 * value).toFixed(2)}%`;
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/* With as many digits as neighbours on an axis need to differ. */
function tickText(value, percent, range) {
  if (percent) return `${(100 * value).toFixed(range < 0.005 ? 2 : range < 0.05 ? 1 : 0)}%`;
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(5)));
}

class Chart {
  constructor(figure, number) {
    Object.assign(this, { figure, number });
    Object.assign(this, JSON.parse(figure.dataset.chart));
    this.groups = Math.max(...this.lines.map((line) => line.group)) + 1;
    this.off = new Set();
    this.legend();
    this.svg = shape(figure, "svg", { tabindex: 0, role: "img", "aria-label": this.title + ": arrow keys move through the values" });
    this.tip = node(figure, "div", { className: "tip", hidden: true });
    this.tip.setAttribute("aria-live", "polite");
    this.svg.addEventListener("pointermove", (event) => this.point(event.clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("blur", () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  legend() {
    const named = this.lines.filter((line) => !line.faint);
    const list = node(this.figure, "div", { className: "legend" });
    if (named.length < 2) return;
    for (const line of named) {
      const button = node(list, "button", { type: "button" }, line.name);
      button.style.setProperty("--colour", colour(line.group, this.groups));
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        if (!this.off.delete(line.group)) this.off.add(line.group);
        button.setAttribute("aria-pressed", String(!this.off.has(line.group)));
        this.draw();
      });
    }
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!width) return;
    this.leave();
    this.svg.replaceChildren();
    this.svg.setAttribute("height", HEIGHT);
    const drawn = this.lines.filter((line) => !this.off.has(line.group) && line.points.length);
    this.drawn = drawn.filter((line) => !line.faint);
    if (!drawn.length) return;
    const all = drawn.flatMap((line) => line.points);
    this.xs = [...new Set(this.drawn.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    const [left, right] = this.x === "recall" ? [0, 1] : [0, Math.max(1, extent(all.map(([x]) => x))[1])];
    const [low, high] = this.x === "recall" ? [0, 1] : this.height(drawn, left, right);
    const [bottom, top] = [HEIGHT - MARGIN.bottom, MARGIN.top];
    this.across = (x) => MARGIN.left + ((x - left) / (right - left || 1)) * (width - MARGIN.left - MARGIN.right);
    const scale = this.log ? Math.log : (value) => value;
    this.up = (y) => bottom - ((scale(y) - scale(low)) / (scale(high) - scale(low))) * (bottom - top);
    for (const tick of this.log ? logTicks(low, high) : linearTicks(low, high, 5)) {
      shape(this.svg, "line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: this.up(tick), y2: this.up(tick) });
      shape(this.svg, "text", { x: MARGIN.left - 8, y: this.up(tick) + 4, "text-anchor": "end" }, tickText(tick, this.percent, high - low));
    }
    for (const tick of linearTicks(left, right, width < 400 ? 4 : 6))
      shape(this.svg, "text", { x: this.across(tick), y: HEIGHT - 6, "text-anchor": "middle" },
        this.x === "recall" ? tickText(tick, true, 1) : tick.toLocaleString("en"));
    shape(shape(this.svg, "clipPath", { id: `clip-${this.number}` }), "rect",
      { x: MARGIN.left - 4, y: top - 4, width: width - MARGIN.left - MARGIN.right + 8, height: bottom - top + 8 });
    const inside = shape(this.svg, "g", { "clip-path": `url(#clip-${this.number})` });
    for (const line of [...drawn].sort((a, b) => b.faint - a.faint)) this.line(inside, line);
    this.cursor = shape(this.svg, "g", {});
  }

  /* From the lowest to the highest value, but for those before lines have settled. */
  height(drawn, left, right) {
    const values = (from) => drawn.flatMap((line) => line.points.filter(([x]) => x >= from).map(([, y]) => y));
    let [low, high] = extent(values(left + this.settled * (right - left)));
    if (!(low < high)) [low, high] = extent(values(left));
    if (this.log) return low < high ? [low / 1.08, high * 1.08] : [low / 2, high * 2];
    const space = 0.05 * (high - low) || 0.1 * Math.abs(high) || 1;
    // No room below 0 for what cannot be negative, none above 100% for what cannot be more.
    return [low >= 0 ? Math.max(0, low - space) : low - space, this.percent ? Math.min(1, high + space) : high + space];
  }

  line(parent, line) {
    const stroke = colour(line.group, this.groups);
    const places = line.points.map(([x, y]) => `${this.across(x).toFixed(1)},${this.up(y).toFixed(1)}`);
    shape(parent, "path", { d: "M" + places.join("L"), style: `stroke: ${stroke}; stroke-width: ${line.faint ? 1 : 2}; opacity: ${line.faint ? 0.4 : 1}` });
    if (!line.faint && places.length <= 30)
      for (const place of places) {
        const [cx, cy] = place.split(",");
        shape(parent, "circle", { cx, cy, r: 2.6, style: `fill: ${stroke}` });
      }
  }

  point(place) {
    if (!this.xs?.length) return;
    const far = (x) => Math.abs(this.across(x) - place);
    this.show(this.xs.reduce((best, x, index) => (far(x) < far(this.xs[best]) ? index : best), 0));
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.leave();
    if (!step || !this.xs?.length) return;
    event.preventDefault();
    const from = this.at ?? (step > 0 ? -1 : this.xs.length);
    this.show(Math.min(this.xs.length - 1, Math.max(0, from + step)));
  }

  show(index) {
    this.at = index;
    const x = this.xs[index], near = this.across(x);
    this.cursor.replaceChildren();
    this.tip.replaceChildren();
    shape(this.cursor, "line", { class: "cross", x1: near, x2: near, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
    node(this.tip, "div", { className: "at" }, this.x === "recall" ? `recall ${written(x, true)}` : `${this.x} ${x.toLocaleString("en")}`);
    for (const line of this.drawn) {
      const [px, py] = line.points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      if (Math.abs(this.across(px) - near) > 6) continue; // this line has no value here
      shape(this.cursor, "circle", { cx: this.across(px), cy: this.up(py), r: 4, style: `fill: ${colour(line.group, this.groups)}` });
      const row = node(this.tip, "div");
      node(row, "i").style.setProperty("--colour", colour(line.group, this.groups));
      node(row, "span", {}, line.name);
      node(row, "b", {}, written(py, this.percent));
    }
    this.tip.hidden = false;
    const width = this.figure.clientWidth, offset = this.svg.offsetLeft ?? 14;
    const right = near + 28 + this.tip.offsetWidth > width;
    this.tip.style.left = `${Math.max(4, right ? near + 2 - this.tip.offsetWidth : near + 28)}px`;
    this.tip.style.top = `${this.svg.getBoundingClientRect().top - this.figure.getBoundingClientRect().top + MARGIN.top}px`;
  }

  leave() {
    this.at = undefined;
    this.tip.hidden = true;
    this.cursor?.replaceChildren();
  }
}

/* Menus of choices and of their parts; the part stays where the next choice has it too. */
function pick(picker) {
  const [choice, part] = picker.querySelectorAll("select");
  const panels = [...picker.querySelectorAll(".panel")];
  const show = () => {
    for (const panel of panels) panel.hidden = panel.dataset.choice !== choice.value || panel.dataset.part !== part.value;
  };
  const fill = () => {
    const parts = panels.filter((panel) => panel.dataset.choice === choice.value).map((panel) => panel.dataset.part);
    const before = part.value;
    part.replaceChildren(...parts.map((name) => new Option(name, name)));
    part.value = parts.includes(before) ? before : parts[0];
    part.parentElement.hidden = parts.length < 2;
    show();
  };
  choice.addEventListener("change", fill);
  part.addEventListener("change", show);
  choice.parentElement.hidden = choice.options.length < 2;
  fill();
}

document.querySelectorAll("[data-chart]").forEach((figure, number) => new Chart(figure, number));
document.querySelectorAll(".picker").forEach(pick);
