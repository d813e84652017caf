"""`vipbench cite`: whom to cite for a folder's numbers."""

from __future__ import annotations

from pathlib import Path

from vipbench import __version__
from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError
from vipbench.results.sharing.citations import bibliography, used
from vipbench.results.store.store import Store

PROGRAM = f"""@software{{vipbench,
  title = {{vipbench: few-shot adaptation of {{CLIP}}-like models in medical imaging}},
  author = {{{{The vipbench authors}}}},
  version = {{{__version__}}},
}}"""


def cite_command(folder: Path) -> int:
    """Print a .bib file. Raises UsageError, StoreError."""
    with Store(folder, readonly=True) as store:
        records = store.records(history=False)
        records += [r for several in store.submissions().values() for _, r in several]
    if not records:
        raise UsageError(f"{folder} has no records; `vipbench run --out {folder}` creates some")
    print(bibliography(used(records), PROGRAM).rstrip("\n"))
    return OK
