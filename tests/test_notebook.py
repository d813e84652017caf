"""The notebooks in docs/ run, and show what their cells print.

`python -m tests.test_notebook` runs them and writes their outputs anew. No notebook software is
needed: the cells are run one after another in the `__main__` of a process, their source known to
`inspect`, as in a notebook's kernel.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests import warm

REPO = Path(__file__).resolve().parents[1]
PAGES = [REPO / "docs" / f"{name}.ipynb" for name in ("results", "own-method")]
NUMBER = re.compile(r"-?\d+\.\d+")
# Other processors and libraries round otherwise: so far, in percent or in the unit shown, may a
# number be from the one in the notebook.
TOLERANCE = 2.0

RUNNER = """
import ast, contextlib, io, json, linecache, sys
_cells, _printed = json.load(sys.stdin), []
for _number, _source in enumerate(_cells):
    _name, _tree, _out = f"<cell {_number}>", ast.parse(_source), io.StringIO()
    linecache.cache[_name] = (len(_source), None, _source.splitlines(keepends=True), _name)
    _last = _tree.body.pop() if _tree.body and isinstance(_tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(_out):
        exec(compile(_tree, _name, "exec"))
        if _last is not None:
            _value = eval(compile(ast.Expression(_last.value), _name, "eval"))
            if _value is not None:
                print(_value)
    _printed.append(_out.getvalue())
sys.stdout.write(json.dumps(_printed))
"""


def load(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.read_text(encoding="utf-8"))
    return found


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict[str, Any]) -> list[str]:
    """What each code cell prints, its last expression included."""
    path = os.pathsep.join(p for p in (str(REPO), os.environ.get("PYTHONPATH")) if p)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", RUNNER],
            input=json.dumps(["".join(cell["source"]) for cell in code_cells(notebook)]),
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "TERM": "dumb", warm.WARM: "1"},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    printed: list[str] = json.loads(done.stdout)
    return printed


def shown(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_it_shows_what_it_prints(page: Path) -> None:
    notebook = load(page)
    printed = run(notebook)
    assert any("accuracy" in text.lower() for text in printed)
    for cell, text in zip(code_cells(notebook), printed, strict=True):
        before = shown(cell)
        pair = [re.sub(r"[ -]+", " ", NUMBER.sub("#", t)) for t in (before, text)]
        assert pair[0] == pair[1], "run `python -m tests.test_notebook`"
        numbers = [[float(n) for n in NUMBER.findall(t)] for t in (before, text)]
        assert all(abs(a - b) <= TOLERANCE for a, b in zip(*numbers, strict=True)), (before, text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_it_is_a_notebook(page: Path) -> None:
    notebook = load(page)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [
        *range(1, len(code_cells(notebook)) + 1)
    ]


if __name__ == "__main__":
    for file in PAGES:
        page = load(file)
        for number, (cell, text) in enumerate(zip(code_cells(page), run(page), strict=True), 1):
            lines = text.splitlines(keepends=True)
            cell["execution_count"] = number
            cell["outputs"] = (
                [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
            )
        file.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
