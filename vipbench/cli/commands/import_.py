"""`vipbench import`: read exported records into a results folder."""

from __future__ import annotations

from pathlib import Path

from vipbench.cli.commands.merge import add_plan, print_counts, submitter_name
from vipbench.cli.exit_codes import OK
from vipbench.results.sharing.files import read_file
from vipbench.results.sharing.rows import read_rows, with_local_names
from vipbench.results.store.store import Collection
from vipbench.results.store.submissions import submitted_by


def import_command(file: Path, out: Path, name: str) -> int:
    """Keep the records of an exported file as `name`'s in a folder. Raises UsageError, StoreError,
    OSError; then nothing was kept."""
    name = submitter_name(name)
    with Collection(out) as store:
        pairs = with_local_names(read_rows(read_file(file), f"'{file}'"), store)
        kept = [(submitted_by(record, name, p is not None), p) for record, p in pairs]
        outcomes = store.submit(kept)
        add_plan(store, [record for record, _ in kept])
        print_counts(out, outcomes, store)
    return OK
