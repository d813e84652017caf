"""`vipbench merge`: combine results folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vipbench.cli.commands.disputes import tell_disputes
from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.recompute import disagreements, key_problems
from vipbench.results.records.record import Record
from vipbench.results.sharing.rows import all_results, who
from vipbench.results.store.store import Collection, Handed, Store
from vipbench.results.store.submissions import OWN, device, matches, submitted_by, submitter
from vipbench.text import clean, plural

LONGEST_NAME = 80


def merge_command(folders: Sequence[str], out: Path, prefer: str | None) -> int:
    """Put folders' records together in `out`. Raises UsageError, StoreError."""
    if not folders and prefer is None:
        raise UsageError("nothing to merge: give results folders, or --prefer SUBMITTER")
    sources = [_source(text, i, len(folders)) for i, text in enumerate(folders, 1)]
    for name, folder in sources:
        if folder.absolute() == out.absolute():
            raise UsageError(
                f"{folder} is the output folder itself; remove it from the arguments ({name})"
            )
    with Collection(out) as store:
        outcomes = []
        for name, folder in sources:
            with Store(folder, readonly=True) as source:
                outcomes += store.submit(_read_submissions(source, name))
                _add_cells(store, source.plan())
        print_counts(out, outcomes, store)
        if prefer is not None:
            _prefer(store, prefer)
        tell_disputes(store, sys.stdout)
    return OK


def submitter_name(name: str) -> str:
    """A name to stand beside results. Raises UsageError."""
    name = name.strip()
    if not name or not name.isprintable() or len(name) > LONGEST_NAME or name == OWN:
        raise UsageError(
            f"--submitter {name!r}: expected a name of at most {LONGEST_NAME} printable characters"
        )
    return name


def add_plan(store: Store, records: Sequence[Record]) -> None:
    """Let tables of the folder show records that no run asked for, behind what one did."""
    _add_cells(store, [PlannedCell.of(record) for record in records])


def _add_cells(store: Store, cells: Sequence[PlannedCell]) -> None:
    there = store.plan()
    slots = {cell.slot for cell in there}
    new = {cell.slot: cell for cell in cells if cell.slot not in slots}
    if new:
        store.save_plan([*there, *new.values()])


def _source(text: str, number: int, count: int) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if equals and not Path(text).exists():
        return submitter_name(name), Path(folder)
    return ("run" if count == 1 else f"run {number}"), Path(text)


def _read_submissions(source: Store, name: str) -> Iterator[Handed]:
    several = source.submissions()
    for record in source.records():
        if record.key not in several:
            yield _read_submission(record, name, source)
    for found in several.values():
        for number, record in found:
            yield _read_submission(record, name, source, number)


def _read_submission(record: Record, name: str, source: Store, number: int | None = None) -> Handed:
    predictions = source.predictions(record.key, number)
    learned = source.parameters(record.key, number)
    problems = key_problems(record)
    if predictions is not None:
        problems += disagreements(record, predictions)
    if problems:
        raise UsageError(
            f"{source.out_dir} holds a record that was altered, {record.cell.words()}: "
            f"{'; '.join(problems)}. Nothing was merged from it; `vipbench verify` shows all"
        )
    return submitted_by(record, name, predictions is not None), predictions, learned


def _prefer(store: Collection, preferred: str) -> None:
    several = store.submissions()
    names = who(record for found in several.values() for _, record in found)
    choices: dict[str, int] = {}
    unclear = twice = 0
    for key, found in several.items():
        fitting = [(number, record) for number, record in found if matches(record, preferred)]
        if len({(submitter(record), device(record)) for _, record in fitting}) == 1:
            # Where one machine gave two results no name tells them apart: the first stands.
            choices[key] = fitting[0][0]
            twice += len(fitting) > 1
        else:
            unclear += bool(fitting)
    if not choices and not unclear and several:
        raise UsageError(
            f"--prefer {preferred}: that name submitted none of the cells in dispute; expected one "
            f"of {', '.join(names)}, each also as NAME@DEVICE"
        )
    store.choose(choices)
    print(f"{plural(len(choices), 'cell')} now use the results of {clean(preferred)}")
    if twice:
        print(
            f"{plural(twice, 'cell')} came twice from the same submitter and device: the first "
            f"is kept"
        )
    if unclear:
        print(
            f"{plural(unclear, 'cell')} came from {clean(preferred)} more than once; add the "
            "device: --prefer NAME@DEVICE"
        )


def print_counts(out: Path, outcomes: Sequence[str], store: Store) -> None:
    """Print how many results are new, there already, or differ."""
    counts = {word: outcomes.count(word) for word in ("new", "same", "other")}
    print(
        f"{out}: {plural(counts['new'], 'new result')}, {counts['same']:,} already there, "
        f"{counts['other']:,} with scores that differ from those there"
    )
    if counts["other"]:
        print(f"submitters: {clean(', '.join(who(r for r, _ in all_results(store))))}")
