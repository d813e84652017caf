// What stands behind a number: settings, records, and the command that makes them again.
function definitions(pairs) {
  const list = make("dl");
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(make("dt", {}, name), make("dd", {}, value));
  }
  return list;
}

function plain(value) {
  if (Array.isArray(value)) return value.length ? value.map(plain).join(", ") : "none";
  if (value !== null && typeof value === "object") {
    return Object.entries(value).map(([k, v]) => `${k} ${plain(v)}`).join(", ");
  }
  return value === null ? "none" : String(value);
}

function pluginText(plugin) {
  const version = plugin.version ? ` ${plugin.version}` : "";
  const hash = plugin.file_sha256 ? `, file SHA-256 ${plugin.file_sha256}` : "";
  return plugin.plugin ? `${plugin.plugin}${version}${hash}` : "";
}

function settingsTable(title, values) {
  const pairs = Object.entries(values || {});
  if (!pairs.length) return [];
  return [make("h3", {}, title), definitions(pairs.map(([k, v]) => [k, plain(v)]))];
}

function commandBlock(entry) {
  const text = commandOf(entry);
  const code = make("code", { id: "command" }, text);
  const copy = make("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      // Without the right to write to the clipboard, the text is at least selected.
      getSelection().selectAllChildren(code);
    }
  });
  const needs = [];
  if (entry.row.file_plugin) {
    needs.push(`DIR holds the plugin '${entry.row.plugin.plugin}'.`);
  }
  if ((entry.dataset.source || "").endsWith(":PATH")) {
    needs.push(`PATH is your copy of '${entry.dataset.name}'; its fingerprint tells whether it is the same.`);
  }
  return [make("h3", {}, "Make it again"), make("pre", { tabindex: "0" }, code), copy,
    ...(needs.length ? [make("p", { class: "note" }, needs.join(" "))] : [])];
}

function cellRow(cell, note) {
  const row = make("tr", {}, make("td", { class: "number" }, String(cell.seed)));
  METRICS.forEach((_, m) => {
    const value = cell.values ? cell.values[m] : null;
    const text = value === null ? "–" : shown(value * DATA.unit, m);
    row.append(make("td", { class: "number" }, text));
  });
  row.append(make("td", {}, make("code", { class: "key" }, cell.key)), make("td", {}, note));
  return row;
}

function runText(cell) {
  return [...Object.entries(cell.run).map(([k, v]) => `${k} ${v}`), cell.created].join(", ");
}

function recordsTable(entry) {
  const head = make("tr", {}, make("th", { scope: "col" }, "Seed"),
    ...METRICS.map((metric) => make("th", { scope: "col" }, metric.title)),
    make("th", { scope: "col" }, "Record key"), make("th", { scope: "col" }, "Made with"));
  const body = make("tbody");
  for (const cell of entry.cells) body.append(cellRow(cell, runText(cell)));
  for (const results of entry.disputed) {
    for (const cell of results) body.append(cellRow(cell, `in dispute: ${runText(cell)}`));
  }
  for (const [key, seed, error] of entry.failed) {
    body.append(cellRow({ key, seed }, `failed: ${error}`));
  }
  return make("div", { class: "scroll", tabindex: "0" },
    make("table", { class: "records" }, make("thead", {}, head), body));
}

function intervalText(entry) {
  const m = Number(control.metric.value);
  const interval = intervalOf(entry, m);
  if (!interval) return "none: a single number has no interval";
  return `${shown(lowOf(entry, m), m)} – ${shown(highOf(entry, m), m)}, 95 %, ${interval}`;
}

function showProvenance(entry) {
  const m = Number(control.metric.value);
  const { dataset, backbone, row } = entry;
  const title = document.getElementById("provenance-title");
  const where = `${dataset.name}, ${backbone.name}, ${shotsText(entry.shots)}`;
  title.textContent = `${row.label} on ${where}`;
  const value = meanOf(entry, m) === null ? missing(entry, m) : shown(meanOf(entry, m), m);
  const rank = rankText(entry, m);
  document.getElementById("provenance-body").replaceChildren(
    definitions([
      [METRICS[m].title, value],
      ["Rank", rank === "–" ? "not ranked" : `${rank} on these images, weights and shots`],
      ["Interval", intervalText(entry)],
      ["Seeds", `${entry.cells.length} of ${entry.expected} finished`],
    ]),
    ...entry.notes.map((note) => make("p", { class: "note" }, note)),
    ...commandBlock(entry),
    make("h3", {}, "Records"), recordsTable(entry),
    make("h3", {}, "Method"),
    definitions([
      ["Registered name", row.name], ["Kind", row.kind], ["Revision", row.revision],
      ["Needs", row.needs.join(", ")], ["Plugin", pluginText(row.plugin)],
      ["Symptoms SHA-256", row.symptoms],
      ["Images given", `${row.support[0]} for training, ${row.support[1]} for validation`],
    ]),
    ...settingsTable("Hyperparameters", row.hparams),
    ...settingsTable("Training", row.recipe),
    ...settingsTable("Protocol", row.protocol),
    make("h3", {}, "Backbone"),
    definitions([["Name", backbone.name], ["Weights", backbone.fingerprint],
      ["Plugin", pluginText(backbone.plugin)], ["Licence", backbone.licence]]),
    make("h3", {}, "Dataset"),
    definitions([["Name", dataset.name], ["Fingerprint", dataset.fingerprint],
      ["Classes", dataset.classes.join(", ")],
      ["Training images", plain(dataset.counts.train)],
      ["Validation images", plain(dataset.counts.val)],
      ["Test images", plain(dataset.counts.test)], ["Plugin", pluginText(dataset.plugin)],
      ["Licence", dataset.licence], ["Note", dataset.caption]]),
  );
  const dialog = document.getElementById("provenance");
  dialog.showModal();
  dialog.scrollTop = 0;
  title.focus();
}

// A press beside the dialog closes it.
document.getElementById("provenance").addEventListener("click", (event) => {
  if (event.target.id === "provenance") event.target.close();
});
