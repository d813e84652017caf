"""`vipbench verify`: whether a folder holds what it says, and can be made again."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vipbench.cli.exit_codes import FAILED, OK
from vipbench.engine.progress import reporter
from vipbench.engine.rerun import VERDICTS, Rerun, rerun
from vipbench.results.records.recompute import disagreements, key_problems
from vipbench.results.records.record import Record, sha256
from vipbench.results.store.lock import StoreError
from vipbench.results.store.rows import parameters_sha256
from vipbench.results.store.store import FILE, Store
from vipbench.runspec.run import SUITE_NAME, RunSpec
from vipbench.text import clean, plural

MOST_SHOWN = 20


def verify_command(
    folder: Path, again: int, seed: int, suite: RunSpec | None, tolerance: float
) -> int:
    """Check a folder; run `again` of its cells anew. Raises UsageError, StoreError where there is
    no results folder."""
    if not (folder / FILE).exists():
        Store(folder, readonly=True)
    try:
        with Store(folder, readonly=True) as store:
            problems = _check(store)
            chosen = _sample(store, again, seed)
            pairs = [(record, store.predictions(record.key)) for record in chosen]
    except StoreError as error:
        print(f"incomplete or damaged: {error}")
        return FAILED
    if again:
        found: list[Rerun] = []
        if pairs:
            spec = suite or suite_of(folder)
            with tempfile.TemporaryDirectory(prefix="vipbench-verify-") as temporary:
                found = rerun(pairs, spec, Path(temporary) / "out", tolerance)
        problems += show_reruns(found, tolerance, f"of {again} requested, drawn with seed {seed}")
        if not found:
            print("  there are no finished cells to rerun")
            problems += 1
    print("verified" if not problems else f"{plural(problems, 'problem')} found")
    return OK if not problems else FAILED


def suite_of(folder: Path) -> RunSpec:
    """The suite of the folder's last run, or the defaults where it has none."""
    path = folder / SUITE_NAME
    return RunSpec.from_yaml(path) if path.exists() else RunSpec()


def show_reruns(found: Sequence[Rerun], tolerance: float, how: str) -> int:
    """Print what came of cells that were run again; returns how many were not confirmed."""
    counts = {verdict: sum(r.verdict == verdict for r in found) for verdict in VERDICTS}
    verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in counts.items())
    print(f"run again: {plural(len(found), 'cell')} ({how}): {verdicts}")
    print(f"  the tolerance: {tolerance:g} of the largest stored score, for every score")
    for result in found[:MOST_SHOWN]:
        if result.verdict == "not rerun":
            print(f"  {_place(result.record)}: not rerun: {clean(result.reason)}")
        elif result.verdict != "identical":
            print(f"  {_place(result.record)}: {result.verdict}, by up to {result.largest:.2g}")
    return counts["different"] + counts["not rerun"]


def _check(store: Store) -> int:
    """Read everything that is stored; each read is checked against its hash."""
    several = store.submissions()
    checked = [(r, None) for r in store.records() if r.key not in several]
    results: list[tuple[Record, int | None]] = [
        *checked,
        *((r, number) for found in several.values() for number, r in found),
    ]
    scored = learned = gone = 0
    wrong: list[str] = []
    keys: list[str] = []
    shown = reporter(sys.stderr)
    shown.start(len(results))
    for place, (record, number) in enumerate(results):
        shown.update(place, 0.0, len(wrong) + len(keys), record.cell.words())
        if problems := key_problems(record):
            keys.append(f"{_place(record)}: {'; '.join(problems)}")
        predictions = store.predictions(record.key, number)
        if predictions is not None:
            scored += 1
            problems = disagreements(record, predictions)
            if problems:
                wrong.append(f"{_place(record)}: {'; '.join(problems)}")
        data = store.parameters(record.key, number)
        if data is not None:
            learned += sha256(data) == parameters_sha256(record)
        elif parameters_sha256(record) is not None:
            gone += 1
    shown.stop()
    failed = sum(not record.ok for record, _ in results)
    print(f"records: {len(results):,}, schema and hashes valid, {failed:,} of them failed cells")
    print(
        f"metrics: {scored - len(wrong):,} follow from their scores, {len(wrong):,} do not, "
        f"{len(results) - failed - scored:,} have no scores"
    )
    for line in wrong[:MOST_SHOWN]:
        print(f"  {clean(line)}")
    print(f"keys: {len(results) - len(keys):,} belong to their cells, {len(keys):,} do not")
    for line in keys[:MOST_SHOWN]:
        print(f"  {clean(line)}")
    print(f"learned parameters: {learned:,} valid, {gone:,} not exported")
    if several:
        print(f"submissions: {plural(len(store.disputed()), 'cell')} in dispute")
    return len(wrong) + len(keys)


def _sample(store: Store, count: int, seed: int) -> list[Record]:
    done = sorted((r for r in store.records(history=False) if r.ok), key=lambda r: r.key)
    return random.Random(seed).sample(done, min(count, len(done)))


def _place(record: Record) -> str:
    return clean(f"{record.cell.words()} ({record.key[:12]})")
