"""Which planned cells are done, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.results.samples import scored
from vipbench.engine.workers.plan import NOT_AGAIN, PlannedCell, Stored, what_changed
from vipbench.results import Record, Store

PARTS: dict[str, Any] = {
    "method.revision": 1,
    "method.code": None,
    "hparams": {"lr": 0.1, "M": 4},
    "backbone": "a" * 64,
    "views": "none",
}


def record_with(parts: dict[str, Any] | None) -> Record:
    value = scored(1)[0].to_dict()
    value["provenance"]["key_parts"] = parts
    return Record.of(value)


def planned(record: Record, key: str, parts: dict[str, Any]) -> PlannedCell:
    return PlannedCell.of(record, parts=parts).model_copy(update={"key": key})


def test_every_part_that_changed_is_named_and_no_other() -> None:
    new = {
        **PARTS,
        "method.revision": 2,
        "hparams": {"lr": 0.2, "M": 4, "depth": 3},
        "backbone": "b" * 64,
    }
    changed = what_changed(record_with(PARTS), new)
    assert changed == (
        "changed since the last result: the method's revision (1 -> 2), "
        "hparams.lr (0.1 -> 0.2), hparams.depth (none -> 3), "
        "the backbone's weights, tokenizer or preprocessing, or how they are read "
        "(aaaaaaaa -> bbbbbbbb)"
    )
    assert "key" in what_changed(record_with(None), new)


def test_a_cell_is_judged_by_what_the_folder_holds(tmp_path: Path) -> None:
    record, predictions = scored(1)
    with Store(tmp_path) as store:
        store.add(record, predictions)
    stored = Stored.read(tmp_path)
    assert stored.judge(planned(record, record.key, PARTS)).status == "done"
    other = stored.judge(planned(record, "f" * 64, PARTS))
    assert other.status == "todo"
    assert (other.reason or "").startswith("changed")
    assert Stored.read(tmp_path / "none").judge(planned(record, record.key, PARTS)).reason is None


def test_a_failed_cell_is_tried_again_unless_that_was_refused(tmp_path: Path) -> None:
    failed = {**scored(1)[0].to_dict(), "status": "error", "metrics": {}}
    failed["error"] = {"type": "E", "message": "m", "traceback": None, "plugin": "p", "file": "f"}
    record = Record.of(failed)
    with Store(tmp_path) as store:
        store.add(record)
    cell, stored = planned(record, record.key, PARTS), Stored.read(tmp_path)
    assert stored.judge(cell).status == "todo"
    refused = stored.judge(cell, retry=False)
    assert (refused.status, refused.reason) == ("done", NOT_AGAIN)
