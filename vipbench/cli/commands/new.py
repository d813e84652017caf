"""`vipbench new`: write the file of a new plugin."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from vipbench import files
from vipbench.cli.commands.check import KINDS
from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError, unknown


def new_command(kind: str, name: str, folder: Path) -> int:
    """Write a plugin file that passes `vipbench check`. Raises UsageError."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise UsageError(f"'{name}' is not a valid name; expected lowercase letters, digits and -")
    text = resources.files("vipbench").joinpath("templates", f"{kind}.py.txt").read_text("utf-8")
    class_name = "".join(part.capitalize() for part in name.split("-"))
    file = folder / f"{name.replace('-', '_')}.py"
    if file.exists():
        raise UsageError(f"'{file}' exists; give another NAME, or a folder with --plugins-dir")
    folder.mkdir(parents=True, exist_ok=True)
    files.write(file, text.replace("CLASS_NAME", class_name).replace("WORD", name))
    print(f"Wrote {file}; `vipbench check {file}` runs the conformance suite on it")
    return OK
