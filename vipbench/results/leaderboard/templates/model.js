"use strict";
// The page's data, unpacked: leaderboard_page.py packs it.
const DATA = JSON.parse(document.getElementById("data").textContent);
const METRICS = DATA.metrics;
const SECTIONS = [
  ["methods", "Methods", ""],
  ["informed", "† Texts that saw more images than the shots",
    "Their symptoms or descriptions were written from more labelled images per class than the "
    + "column's shots; they are ranked among themselves."],
  ["transductive", "Transductive methods",
    "They see all test images at once, so that their numbers answer another question."],
  ["views", "Several views of each test image",
    "They score more than the evaluation view of an image."],
  ["test-selected", "Selected on the test images",
    "Their settings or epochs were chosen on the test images: these numbers are optimistic."],
];

function unpackCell(cell) {
  const [key, seed, run, created, ...values] = cell;
  return { key, seed, run: DATA.runs[run], created, values };
}

function unpackEntry(line, id) {
  const [section, dataset, backbone, row, shots, command, expected, notes, bounds, cells, failed,
    disputed] = line;
  return {
    id, section, shots, expected, bounds, failed,
    dataset: DATA.datasets[dataset],
    backbone: DATA.backbones[backbone],
    row: DATA.rows[row],
    command: DATA.commands[command],
    notes: notes.map((i) => DATA.notes[i]),
    cells: cells.map(unpackCell),
    disputed: disputed.map((results) => results.map(unpackCell)),
    order: shots === "full" ? Infinity : shots,
  };
}

const ENTRIES = DATA.entries.map(unpackEntry);

// Entries of one competition with the same rank in some metric: such a rank is shown with "=".
const COMPETITIONS = new Map();
for (const e of ENTRIES) {
  e.competition = [e.section, DATA.datasets.indexOf(e.dataset), DATA.backbones.indexOf(e.backbone),
    e.shots].join("/");
  for (let m = 0; m < METRICS.length; m++) {
    const rank = rankOf(e, m);
    if (rank !== null) {
      const place = `${e.competition}/${m}/${rank}`;
      COMPETITIONS.set(place, (COMPETITIONS.get(place) || 0) + 1);
    }
  }
}

function meanOf(entry, m) { return entry.bounds[m] ? entry.bounds[m][0] * DATA.unit : null; }
function sdOf(entry, m) { return scaled(entry.bounds[m] ? entry.bounds[m][1] : null); }
function lowOf(entry, m) { return scaled(entry.bounds[m] ? entry.bounds[m][2] : null); }
function highOf(entry, m) { return scaled(entry.bounds[m] ? entry.bounds[m][3] : null); }
function rankOf(entry, m) { return entry.bounds[m] ? entry.bounds[m][4] : null; }
function intervalOf(entry, m) {
  if (!entry.bounds[m] || entry.bounds[m][2] === null) return "";
  return entry.bounds[m][5] === "i" ? "bootstrap over test images" : "t interval over seeds";
}
// What an entry's rank rests on.
function ruleOf(entry, m) {
  if (rankOf(entry, m) === null) return "no interval, no rank";
  return entry.bounds[m][6] === "p"
    ? "rank by paired tests on the same test images and support sets, Holm-corrected"
    : "rank by intervals that do not overlap: the scores or seeds allow no paired test";
}
function scaled(number) { return number === null ? null : number * DATA.unit; }

function shown(value, m) {
  if (value === null || value === undefined) return "–";
  return (value * (METRICS[m].percent ? 100 : 1)).toFixed(METRICS[m].percent ? 1 : 3);
}

function rankText(entry, m) {
  const rank = rankOf(entry, m);
  if (rank === null) return "–";
  const shared = COMPETITIONS.get(`${entry.competition}/${m}/${rank}`) > 1;
  return shared ? `${rank}=` : String(rank);
}

// What an entry without a number says instead.
function missing(entry, m) {
  if (entry.disputed.length) {
    const values = entry.disputed.flat().map((c) => c.values[m]).filter((v) => v !== null);
    if (!values.length) return "–";
    const ends = [Math.min(...values), Math.max(...values)].map((v) => shown(v * DATA.unit, m));
    return `${ends[0]} … ${ends[1]}`;
  }
  return "–";
}

function commandOf(entry) {
  const cells = [...entry.cells, ...entry.failed.map(([key, seed]) => ({ key, seed })),
    ...entry.disputed.map((results) => results[0])];
  if (entry.shots === 0) return entry.command;
  const seeds = [...new Set(cells.map((c) => c.seed))].sort((a, b) => a - b).join(",");
  return `${entry.command} --shots ${entry.shots} --seeds ${seeds}`;
}

function shotsText(shots) {
  if (shots === 0) return "zero-shot";
  return shots === "full" ? "all training images" : `${shots} shot${shots === 1 ? "" : "s"}`;
}

// An element with text and attributes; nothing of the data is ever read as markup.
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text", "title", "polygon", "rect"];
  const node = svg.includes(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  for (const child of children) node.append(child);
  return node;
}
