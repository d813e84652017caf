"""A prompt file for every finished cell of a results folder, and their index."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.engine.explain.prompt_card import page, read_prompt_file
from vipbench.engine.explain.prompt_files import open_run, pack
from vipbench.engine.planning.cells import LoadedCell
from vipbench.engine.planning.protocols import home
from vipbench.engine.rerun import runs
from vipbench.engine.workers.plan import what_changed
from vipbench.engine.workers.session import Session
from vipbench.errors import UsageError, printable
from vipbench.results.records.record import Record
from vipbench.results.sharing.privacy import withheld
from vipbench.results.store.store import Store
from vipbench.runspec.run import SUITE_NAME, RunSpec
from vipbench.text import shots_text

INDEX = "index.csv"
COLUMNS = "file method dataset backbone shots seed accuracy contains_patient_data key".split()
LONGEST = 60


@dataclass
class Exported:
    """files: the files written. private: rows left out because they may hold features of single
    images. lost: cells left out for another reason, with the reason."""

    files: list[Path] = field(default_factory=list)
    private: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def export(folder: Path, out: Path, patient_data: bool = False) -> Exported:
    """Write a prompt file, and a card to read, for every finished cell that kept parameters.

    Parameters that may hold features of single images are left out, unless `patient_data`, of data
    that may not be shared. Raises UsageError.
    """
    made = Exported()
    with Store(folder, readonly=True) as store:
        kept = [r for r in store.records(history=False) if r.ok and store.parameters(r.key)]
        cells = dict(_cells(folder, kept, made.lost))
        seen = [data for cell in cells.values() for data in (cell.data, cell.tested)]
        shareable = {home(data) for data in seen if data.dataset.sharing == "allowed"}
        index = _index(out)
        several = len({record.cell.backbone for record in kept if record.key in cells}) > 1
        for record in kept:
            cell, data = cells.get(record.key), store.parameters(record.key)
            if cell is None or data is None:
                continue
            if (record.provenance.get("parameters") or {}).get("left_out"):
                made.lost.append(f"{record.cell.method}: its parameters were too large to keep")
                continue
            private = withheld(record, shareable)
            if cell.further:
                made.private.append(f"{record.cell.method}, which uses further backbones")
                continue
            if private and not patient_data:
                made.private.append(f"{record.cell.method}, {shots_text(record.cell.shots)}")
                continue
            out.mkdir(parents=True, exist_ok=True)
            name = _name(record, several)
            if index.get(f"{name}.safetensors", {"key": record.key})["key"] != record.key:
                name = f"{name}-{record.key[:8]}"
            path = out / f"{name}.safetensors"
            files.write(path, pack(cell, data, record.metrics, private))
            files.write(path.with_suffix(".md"), page(read_prompt_file(path)[0].model_dump()))
            c = record.cell
            place = (c.method, c.dataset, c.backbone, str(c.shots), str(c.seed))
            numbers = (f"{record.metrics['accuracy']:.4f}", "yes" if private else "no", record.key)
            index[path.name] = dict(zip(COLUMNS, (path.name, *place, *numbers), strict=True))
            made.files.append(path)
    if made.files:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(index.values())
        files.write(out / INDEX, printable(text.getvalue()))
    made.private = list(dict.fromkeys(made.private))
    return made


def _cells(
    folder: Path, records: Sequence[Record], lost: list[str]
) -> Iterator[tuple[str, LoadedCell]]:
    """The records' cells by key. Those that the folder's last run did not ask for are planned from
    what the records tell; what then has another key goes to `lost`."""
    session = open_run(folder)
    yield from ((r.key, session.cells[r.key]) for r in records if r.key in session.cells)
    rest = [(record, None) for record in records if record.key not in session.cells]
    suite = RunSpec.from_yaml(folder / SUITE_NAME)
    for spec, pairs in runs(rest, suite, folder):
        other, refused = Session(lambda event: None), ""
        try:
            other.plan(spec)
        except UsageError as error:
            refused = str(error)
        for record, _ in pairs:
            if record.key in other.cells:
                yield record.key, other.cells[record.key]
                continue
            there = [cell for cell in other.cells.values() if cell.id == record.cell]
            why = what_changed(record, there[0].parts) if there else "it is not a cell of the suite"
            lost.append(
                f"{record.cell.words()}: {folder / SUITE_NAME} no longer produces this cell: "
                f"{refused or why}"
            )


def _name(record: Record, with_backbone: bool) -> str:
    c = record.cell
    shots = "full" if c.shots == "full" else f"{c.shots}-shot"
    parts = [c.method, c.dataset, *([c.backbone] if with_backbone else []), shots]
    return "-".join([*(_word(str(part)) for part in parts), f"seed-{c.seed}"])


def _word(text: str) -> str:
    """`text` as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text)[:LONGEST].strip("-.") or "x"


def _index(out: Path) -> dict[str, Mapping[str, Any]]:
    """File -> row of the index in `out`, as far as the files are there."""
    try:
        with (out / INDEX).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.keys() == {*COLUMNS}]
    except (OSError, ValueError, csv.Error):
        return {}
    return {row["file"]: row for row in rows if (out / row["file"]).is_file()}
