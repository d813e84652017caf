// A metric over shots, one chart a dataset and backbone.
const CHARTS = 6;
const LINES = 24; // more cannot be distinguished
const BANDS = 6; // bands of more lines hide each other
let allCharts = false;
let lastDrawn = null;

function drawCurves(found, m) {
  lastDrawn = [found, m];
  const groups = new Map();
  for (const e of found) {
    if (e.section !== "methods" || meanOf(e, m) === null) continue;
    const name = `${e.dataset.name} · ${e.backbone.name}`;
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(e);
  }
  const shownGroups = [...groups].slice(0, allCharts ? Infinity : CHARTS);
  const labels = [...new Set(shownGroups.flatMap(([, es]) => es.map((e) => e.row.label)))];
  document.getElementById("charts").replaceChildren(
    ...shownGroups.map(([name, entries]) => chart(name, entries, labels, m)));
  document.getElementById("curves").hidden = groups.size === 0;
  document.getElementById("more-charts").hidden = groups.size <= shownGroups.length;
}

document.getElementById("more-charts").addEventListener("click", () => {
  allCharts = true;
  drawCurves(...lastDrawn);
});

const SIZE = { width: 460, height: 300, left: 46, right: 12, top: 10, bottom: 40 };

function ticks(low, high) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step) found.push(t);
  return found;
}

function scales(entries, m) {
  const shots = [...new Set(entries.map((e) => e.shots))]
    .sort((a, b) => (a === "full") - (b === "full") || a - b);
  const factor = METRICS[m].percent ? 100 : 1;
  const values = entries.flatMap((e) => [meanOf(e, m), lowOf(e, m), highOf(e, m)])
    .filter((v) => v !== null).map((v) => v * factor);
  let low = Math.max(0, Math.min(...values));
  let high = Math.min(METRICS[m].percent ? 100 : 1, Math.max(...values));
  if (high - low < 1e-6 * factor) { low -= 0.01 * factor; high += 0.01 * factor; }
  const inner = SIZE.width - SIZE.left - SIZE.right - 24;
  const x = (s) => SIZE.left + 12
    + (shots.length > 1 ? (inner * shots.indexOf(s)) / (shots.length - 1) : inner / 2);
  const tall = SIZE.height - SIZE.top - SIZE.bottom;
  const y = (v) => SIZE.top + (tall * (high - Math.min(high, Math.max(low, v * factor)))) / (high - low);
  return { shots, low, high, factor, x, y };
}

function axes(s, m) {
  const g = make("g", { class: "axes" });
  const right = SIZE.width - SIZE.right;
  const bottom = SIZE.height - SIZE.bottom;
  const decimals = s.high - s.low < 5 && !(METRICS[m].percent && s.high - s.low >= 2) ? 2 : 0;
  for (const t of ticks(s.low, s.high)) {
    const y = s.y(t / s.factor);
    g.append(make("line", { x1: SIZE.left, x2: right, y1: y, y2: y, class: "grid" }));
    g.append(make("text", { x: SIZE.left - 6, y: y + 4, "text-anchor": "end" }, t.toFixed(decimals)));
  }
  for (const shots of s.shots) {
    g.append(make("text", { x: s.x(shots), y: bottom + 16, "text-anchor": "middle" }, String(shots)));
  }
  g.append(make("line", { x1: SIZE.left, x2: right, y1: bottom, y2: bottom }));
  g.append(make("text", { x: (SIZE.left + right) / 2, y: SIZE.height - 6, "text-anchor": "middle" },
    "training images per class"));
  return g;
}

// Eight colours that colour-blind eyes tell apart, then dashes and markers.
function looks(i) { return `c${i % 8} d${Math.floor(i / 8) % 3}`; }

function marker(i, x, y) {
  const r = 3.5;
  if (Math.floor(i / 8) % 3 === 1) {
    return make("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r });
  }
  if (Math.floor(i / 8) % 3 === 2) {
    return make("polygon", { points: `${x},${y - 4.5} ${x + 4.5},${y + 3.5} ${x - 4.5},${y + 3.5}` });
  }
  return make("circle", { cx: x, cy: y, r });
}

function lineOf(entries, i, s, m, band) {
  const g = make("g", { class: looks(i) });
  const points = entries.filter((e) => e.shots !== 0).sort((a, b) => a.order - b.order);
  if (band && points.length > 1 && points.every((e) => lowOf(e, m) !== null)) {
    const up = points.map((e) => `${s.x(e.shots)},${s.y(highOf(e, m))}`);
    const down = points.map((e) => `${s.x(e.shots)},${s.y(lowOf(e, m))}`).reverse();
    g.append(make("polygon", { class: "band", points: [...up, ...down].join(" ") }));
  }
  if (points.length > 1) {
    const d = points.map((e, k) => `${k ? "L" : "M"}${s.x(e.shots)},${s.y(meanOf(e, m))}`).join("");
    g.append(make("path", { d, class: "curve" }));
  }
  for (const e of entries) {
    const mark = marker(i, s.x(e.shots), s.y(meanOf(e, m)));
    const text = `${e.row.label}, ${shotsText(e.shots)}: ${shown(meanOf(e, m), m)}`;
    mark.append(make("title", {}, text));
    g.append(mark);
  }
  return g;
}

function chart(name, entries, labels, m) {
  const s = scales(entries, m);
  const lines = new Map();
  for (const e of entries) {
    // Variants of one label under other settings are drawn as marks of the same line.
    if (!lines.has(e.row.label)) lines.set(e.row.label, []);
    lines.get(e.row.label).push(e);
  }
  const order = [...lines].slice(0, LINES);
  const box = `0 0 ${SIZE.width} ${SIZE.height}`;
  const label = `${METRICS[m].title} over shots on ${name}, ${lines.size} methods`;
  const svg = make("svg", { viewBox: box, role: "img", "aria-label": label }, axes(s, m));
  const legend = make("ul", { class: "legend" });
  for (const [method, found] of order) {
    const i = labels.indexOf(method);
    svg.append(lineOf(found, i, s, m, order.length <= BANDS));
    const swatch = make("svg", { viewBox: "0 0 28 10", class: "swatch", "aria-hidden": "true" },
      make("g", { class: looks(i) }, make("path", { d: "M0,5L28,5", class: "curve" }), marker(i, 14, 5)));
    legend.append(make("li", {}, swatch, method));
  }
  const figure = make("figure", {}, make("figcaption", {}, `${METRICS[m].title}: ${name}`), svg, legend);
  if (lines.size > LINES) {
    figure.append(make("p", { class: "note" },
      `${lines.size - LINES} more methods are not drawn; filter to show them.`));
  }
  return figure;
}
