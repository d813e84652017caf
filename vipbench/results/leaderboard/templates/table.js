// Filters, sorting, and the tables.
const PAGE = 100;
const CONTROLS = ["metric", "dataset", "backbone", "shots", "kind", "query"];
const control = Object.fromEntries(CONTROLS.map((id) => [id, document.getElementById(id)]));
const state = { sort: "rank", down: false, limit: PAGE };

const COLUMNS = [
  { id: "rank", title: "Rank", number: true, key: (e, m) => rankOf(e, m) ?? Infinity },
  { id: "method", title: "Method", key: (e) => e.row.label.toLowerCase() },
  { id: "value", title: "", number: true, key: (e, m) => meanOf(e, m) },
  { id: "interval", title: "95 % interval", number: true, key: (e, m) => lowOf(e, m) },
  { id: "dataset", title: "Dataset", key: (e) => e.dataset.name.toLowerCase() },
  { id: "backbone", title: "Backbone", key: (e) => e.backbone.name.toLowerCase() },
  { id: "shots", title: "Shots", number: true, key: (e) => e.order },
  { id: "kind", title: "Kind", key: (e) => e.row.kind },
  { id: "n", title: "Seeds", number: true, key: (e) => e.cells.length },
];

function fill(select, values, all) {
  if (all) select.append(new Option(all, ""));
  for (const [value, text] of values) select.append(new Option(text, value));
}

function distinct(of) { return [...new Set(ENTRIES.map(of))]; }

function fillControls() {
  const KINDS = { TF: "training-free", TP: "text prompts", AD: "adapters", MM: "vision or both",
    FT: "fine-tuning" };
  const same = (texts) => texts.map((t) => [t, t]);
  fill(control.metric, METRICS.map((metric, i) => [i, metric.title]));
  fill(control.dataset, same(distinct((e) => e.dataset.name)), "all");
  fill(control.backbone, same(distinct((e) => e.backbone.name)), "all");
  const shots = distinct((e) => e.shots);
  shots.sort((a, b) => (a === "full") - (b === "full") || a - b);
  fill(control.shots, shots.map((s) => [String(s), shotsText(s)]), "all");
  fill(control.kind, distinct((e) => e.row.kind).sort()
    .map((k) => [k, KINDS[k] ? `${k}: ${KINDS[k]}` : k]), "all");
}

function wanted(entry, anyShots = false) {
  const query = control.query.value.trim().toLowerCase();
  return (!control.dataset.value || entry.dataset.name === control.dataset.value)
    && (!control.backbone.value || entry.backbone.name === control.backbone.value)
    && (anyShots || !control.shots.value || String(entry.shots) === control.shots.value)
    && (!control.kind.value || entry.row.kind === control.kind.value)
    && (!query || entry.row.label.toLowerCase().includes(query));
}

function compare(a, b) {
  if (typeof a === "string") return a < b ? -1 : a > b ? 1 : 0;
  return a - b;
}

// By a column, ties in the usual order: dataset, backbone, shots, rank, value. What has no number
// comes last, whichever way.
function sorted(entries, m) {
  const best = METRICS[m].higher ? -1 : 1;
  const usual = (a, b) => a.place - b.place || a.order - b.order
    || (rankOf(a, m) ?? Infinity) - (rankOf(b, m) ?? Infinity) || 0
    || best * ((meanOf(a, m) ?? -best * Infinity) - (meanOf(b, m) ?? -best * Infinity)) || 0;
  const { key: by } = COLUMNS.find((c) => c.id === state.sort);
  const keyed = entries.map((e) => ({ e, key: by(e, m) }));
  const ranked = state.sort === "rank" && !state.down;
  keyed.sort((x, y) => {
    if (ranked) return usual(x.e, y.e);
    const none = (x.key === null || x.key === Infinity) - (y.key === null || y.key === Infinity);
    if (none || x.key === null) return none || usual(x.e, y.e);
    return (state.down ? -1 : 1) * (compare(x.key, y.key) || 0) || usual(x.e, y.e);
  });
  return keyed.map((x) => x.e);
}

function valueCell(entry, m) {
  const mean = meanOf(entry, m);
  const button = make("button", { type: "button", class: "value", "data-entry": entry.id });
  button.append(mean === null ? missing(entry, m) : shown(mean, m));
  const sd = sdOf(entry, m);
  if (sd !== null) button.append(" ", make("small", {}, `±${shown(sd, m)}`));
  const what = `${entry.row.label}, ${entry.dataset.name}, ${shotsText(entry.shots)}`;
  button.setAttribute("aria-label", `${button.textContent}: records of ${what}`);
  return button;
}

function rowOf(entry, m, before) {
  const row = make("tr");
  if (rankOf(entry, m) === 1) row.classList.add("first");
  const grouped = state.sort === "rank" && !state.down;
  if (grouped && before && before.competition !== entry.competition) row.classList.add("new");
  const low = lowOf(entry, m);
  const cells = {
    rank: rankText(entry, m),
    value: valueCell(entry, m),
    interval: low === null ? "" : `${shown(low, m)} – ${shown(highOf(entry, m), m)}`,
    dataset: entry.dataset.name,
    backbone: entry.backbone.name,
    shots: String(entry.shots),
    kind: entry.row.kind,
    n: entry.cells.length < entry.expected
      ? `${entry.cells.length} of ${entry.expected}` : String(entry.cells.length),
  };
  for (const column of COLUMNS) {
    if (column.id === "method") {
      const head = make("th", { scope: "row", class: "method" }, entry.row.label);
      if (entry.notes.length) {
        head.append(" ", make("sup", { title: entry.notes.join("\n") }, "note"));
      }
      row.append(head);
    } else {
      const kind = column.number ? `number ${column.id}` : column.id;
      const title = column.id === "rank" ? { title: ruleOf(entry, m) } : {};
      row.append(make("td", { class: kind, ...title }, cells[column.id]));
    }
  }
  return row;
}

function headOf(m) {
  const row = make("tr");
  for (const column of COLUMNS) {
    const title = column.id === "value" ? METRICS[m].title : column.title;
    const cell = make("th", { scope: "col", class: `${column.number ? "number " : ""}${column.id}` });
    const mine = state.sort === column.id;
    if (mine) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    const button = make("button", { type: "button", "data-sort": column.id }, title);
    if (mine) button.append(make("span", { "aria-hidden": "true" }, state.down ? " ▼" : " ▲"));
    cell.append(button);
    row.append(cell);
  }
  return make("thead", {}, row);
}

// What the ranks of a table rest on.
function rulesText(entries, m) {
  const ranked = entries.filter((e) => rankOf(e, m) !== null);
  const paired = ranked.filter((e) => e.bounds[m][6] === "p").length;
  if (!ranked.length) return "No rank: a single run shows no difference.";
  const rules = [];
  if (paired) {
    rules.push("paired tests over seeds and test images (over test images where nothing has seeds) at "
      + "5 %, Holm-corrected over all pairs of a competition");
  }
  if (paired < ranked.length) {
    rules.push("95 % intervals that do not overlap, where scores or seeds allow no paired test");
  }
  const counts = paired && paired < ranked.length
    ? ` (${paired} and ${ranked.length - paired} rows; a rank's title says which)` : "";
  return `A rank is 1 + the number of significantly better methods, by ${rules.join(", or by ")}`
    + `${counts}; = is a shared rank.`;
}

function boardOf([id, title, note], entries, m) {
  const section = make("section", { "data-section": id });
  section.append(make("h2", {}, title));
  if (note) section.append(make("p", { class: "note" }, note));
  const body = make("tbody");
  const shownEntries = sorted(entries, m).slice(0, state.limit);
  body.append(...shownEntries.map((e, i) => rowOf(e, m, shownEntries[i - 1])));
  const table = make("table", {}, make("caption", {}, `${title} by ${METRICS[m].title}`), headOf(m),
    body);
  section.append(make("div", { class: "scroll" }, table));
  section.append(make("p", { class: "note rules" }, rulesText(entries, m)));
  if (entries.length > state.limit) {
    const more = `Show more (${entries.length - state.limit} left)`;
    section.append(make("button", { type: "button", class: "more" }, more));
  }
  return section;
}

function render() {
  const m = Number(control.metric.value);
  const found = ENTRIES.filter((e) => wanted(e));
  const boards = document.getElementById("boards");
  const active = document.activeElement;
  const focus = active && active.dataset ? active.dataset.sort : null;
  boards.replaceChildren(...SECTIONS
    .map((section) => [section, found.filter((e) => e.section === section[0])])
    .filter(([, entries]) => entries.length)
    .map(([section, entries]) => boardOf(section, entries, m)));
  for (const id of ["dataset", "backbone"]) {
    boards.classList.toggle(`one-${id}`, new Set(found.map((e) => e[id].name)).size === 1);
  }
  if (focus) boards.querySelector(`[data-sort="${focus}"]`).focus();
  const metric = METRICS[m];
  document.getElementById("definition").textContent = `${metric.title}: ${metric.definition}; `
    + `${metric.higher ? "higher" : "lower"} is better${metric.percent ? "; in percent" : ""}.`;
  document.getElementById("status").textContent =
    `${found.length.toLocaleString("en")} of ${ENTRIES.length.toLocaleString("en")} entries`;
}

function update() {
  state.limit = PAGE;
  render();
  // Curves run over shots, whichever of them the tables show.
  drawCurves(ENTRIES.filter((e) => wanted(e, true)), Number(control.metric.value));
}

function sortBy(id) {
  const firstDown = id === "value" && METRICS[Number(control.metric.value)].higher;
  state.down = state.sort === id ? !state.down : firstDown;
  state.sort = id;
  render();
}

function listen() {
  const controls = document.getElementById("controls");
  controls.addEventListener("input", update);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(() => {
    Object.assign(state, { sort: "rank", down: false });
    update();
  }));
  document.getElementById("boards").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.sort) sortBy(button.dataset.sort);
    else if (button.dataset.entry) showProvenance(ENTRIES[Number(button.dataset.entry)]);
    else if (button.classList.contains("more")) { state.limit += 10 * PAGE; render(); }
  });
  // What is printed is whole.
  window.addEventListener("beforeprint", () => { state.limit = Infinity; render(); });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const setTheme = (night) => {
    document.documentElement.dataset.theme = night ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(night));
  };
  setTheme(dark.matches);
  dark.addEventListener("change", (event) => setTheme(event.matches));
  theme.addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme !== "dark"));
}

// Places as numbers, in the order of their names: they are compared often.
const placeName = (e) => `${e.dataset.name}\n${e.backbone.name}`.toLowerCase();
const PLACES = new Map([...new Set(ENTRIES.map(placeName))].sort().map((name, i) => [name, i]));
for (const e of ENTRIES) e.place = PLACES.get(placeName(e));
fillControls();
listen();
update();
