"""A comparison as one HTML file that needs no network: circles with names, axes to choose, a table that sorts."""

import html
import json
from collections.abc import Sequence
from typing import Any

from cnn_research.analysis.comparison import Entry

# What an axis may show: heading by the name in an entry's record.
AXES = {
    "macs": "multiply-adds",
    "params": "parameters",
    "activation_bytes": "bytes of outputs",
    "accuracy": "accuracy",
    "percent_per_million_params": "% of accuracy per M parameters",
    "train_seconds": "seconds of training",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --back: #fff; --line: #d0d7de; --soft: #f3f5f7 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --back: #0d1117; --line: #30363d; --soft: #161b22 } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 64rem; padding: 0 1rem }
h1 { font-size: 1.3rem } label { margin-right: 1rem } select { font: inherit }
svg { width: 100%; height: auto; margin: 1rem 0 } svg text { fill: var(--ink); font-size: 12px }
circle { fill-opacity: .35; stroke-width: 1.5; cursor: pointer } circle:hover, circle:focus { fill-opacity: .75; outline: none }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { cursor: pointer }
#tip { position: fixed; display: none; pointer-events: none; background: var(--soft); border: 1px solid var(--line);
  border-radius: 6px; padding: .4rem .6rem; font-size: .82rem; white-space: pre }
"""  # noqa: E501

_SCRIPT = """
const colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const byId = id => document.getElementById(id), plot = byId("plot"), tip = byId("tip");
const short = v => typeof v !== "number" ? (v === null ? "" : String(v)) : v === 0 ? "0" :
  Math.abs(v) >= 1e9 ? +(v / 1e9).toPrecision(4) + " G" : Math.abs(v) >= 1e6 ? +(v / 1e6).toPrecision(4) + " M" :
  Math.abs(v) >= 1e4 ? +(v / 1e3).toPrecision(4) + " k" : String(+v.toPrecision(4));
const columns = [...new Set(rows.flatMap(Object.keys))];
const numbers = columns.filter(c => rows.some(r => typeof r[c] === "number"));
function make(tag, fields, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(fields)) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  plot.append(node);
  return node;
}
function scale(values, from, to, log) {
  const f = log ? Math.log10 : v => v;
  let low = f(Math.min(...values)), high = f(Math.max(...values));
  const room = (high - low || 1) * 0.12;
  low -= room; high += room;
  return { at: v => from + (f(v) - low) / (high - low) * (to - from),
    ticks: [0, 1, 2, 3, 4].map(i => low + (i + .5) / 5 * (high - low)).map(v => log ? 10 ** v : v) };
}
function draw() {
  const [x, y] = [byId("x").value, byId("y").value];
  const shown = rows.filter(r => typeof r[x] === "number" && typeof r[y] === "number");
  plot.replaceChildren();
  if (!shown.length) { make("text", { x: 450, y: 250, "text-anchor": "middle" }, "no network has both"); return; }
  const log = c => c !== "accuracy" && shown.every(r => r[c] > 0);
  const sx = scale(shown.map(r => r[x]), 70, 880, log(x)), sy = scale(shown.map(r => r[y]), 450, 20, log(y));
  const percent = (c, v) => c === "accuracy" ? (100 * v).toFixed(1) + "%" : short(+v.toPrecision(3));
  for (const t of sx.ticks) {
    make("line", { x1: sx.at(t), x2: sx.at(t), y1: 20, y2: 450, stroke: "var(--line)" });
    make("text", { x: sx.at(t), y: 468, "text-anchor": "middle" }, percent(x, t));
  }
  for (const t of sy.ticks) {
    make("line", { x1: 70, x2: 880, y1: sy.at(t), y2: sy.at(t), stroke: "var(--line)" });
    make("text", { x: 62, y: sy.at(t) + 4, "text-anchor": "end" }, percent(y, t));
  }
  make("text", { x: 475, y: 490, "text-anchor": "middle", "font-weight": "bold" }, names[x] || x);
  const most = Math.max(...shown.map(r => r.params));
  for (const r of [...shown].sort((a, b) => b.params - a.params)) {
    const colour = colours[rows.indexOf(r) % colours.length], radius = Math.max(4, 42 * Math.sqrt(r.params / most));
    const dot = make("circle", { cx: sx.at(r[x]), cy: sy.at(r[y]), r: radius, fill: colour, stroke: colour, tabindex: 0,
      "stroke-dasharray": r.published ? "5 3" : "none", "aria-label": r.name });
    const say = (px, py) => {
      tip.textContent = [r.name, ...columns.filter(c => c !== "name" && r[c] !== null && r[c] !== undefined && r[c] !== "")
        .map(c => c + ": " + short(r[c]))].join("\\n");
      tip.style.display = "block";
      tip.style.left = Math.min(px + 14, innerWidth - tip.offsetWidth - 8) + "px";
      tip.style.top = Math.max(8, Math.min(py + 14, innerHeight - tip.offsetHeight - 8)) + "px";
    };
    dot.onmousemove = e => say(e.clientX, e.clientY);
    dot.onfocus = () => { const b = dot.getBoundingClientRect(); say(b.right, b.bottom); };
    dot.onmouseleave = dot.onblur = () => { tip.style.display = "none"; };
    make("text", { x: sx.at(r[x]), y: sy.at(r[y]) + (rows.indexOf(r) % 2 ? radius + 13 : -radius - 4), "text-anchor": "middle", "pointer-events": "none" }, r.name);
  }
}
function fill(order) {
  const body = byId("rows");
  body.replaceChildren(...order.map(r => {
    const line = document.createElement("tr");
    line.append(...columns.map(c => { const cell = document.createElement("td"); cell.textContent = short(r[c] ?? null); return cell; }));
    return line;
  }));
}
let last = "", down = false;
byId("head").append(...columns.map(c => {
  const cell = document.createElement("th");
  cell.textContent = c.replaceAll("_", " ");
  cell.onclick = () => {
    down = last === c ? !down : true; last = c;
    fill([...rows].sort((a, b) => (a[c] ?? -Infinity) < (b[c] ?? -Infinity) === down ? 1 : -1));
  };
  return cell;
}));
for (const id of ["x", "y"]) {
  byId(id).append(...numbers.map(c => new Option(names[c] || c.replaceAll("_", " "), c)));
  byId(id).onchange = draw;
}
byId("x").value = "macs";
byId("y").value = numbers.includes("accuracy") ? "accuracy" : "activation_bytes";
fill(rows);
draw();
"""  # noqa: E501


def page(entries: Sequence[Entry], title: str = "Networks compared") -> str:
    """Returns the page, light or dark as the reader's system is.

    Args:
      entries: with names of their own.
      title: of the page.
    """
    rows = [entry.record() for entry in entries]
    note = "Areas are parameters; what a dashed circle stands for was measured by others. Hover for all numbers."
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>{note}</p>
<label>across <select id="x"></select></label><label>up <select id="y"></select></label>
<svg id="plot" viewBox="0 0 900 500" role="img" aria-label="{html.escape(title)}"></svg>
<div class="scroll"><table><thead><tr id="head"></tr></thead><tbody id="rows"></tbody></table></div>
<div id="tip"></div>
<script>
const rows = {_inline(rows)}, names = {_inline(AXES)};
{_SCRIPT}</script>
</html>
"""


def _inline(value: Any) -> str:
    """Returns JSON that ends no script: in it `</` is written otherwise."""
    return json.dumps(value).replace("</", "<\\/")
