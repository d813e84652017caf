"""docs/results.ipynb runs, and shows what its cells print.

`python tests/test_notebook.py` runs it and writes its outputs anew. No notebook software is needed:
the cells are run one after another in a process of their own.
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

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs" / "results.ipynb"
NUMBER = re.compile(r"-?\d+\.\d+")
# Other processors and libraries round otherwise: so far, in percent or in the unit shown, may a
# number be from the one in the notebook.
TOLERANCE = 2.0

RUNNER = """
import ast, contextlib, io, json, sys
cells, names, told = json.load(sys.stdin), {"__name__": "__main__"}, []
for source in cells:
    tree, out = ast.parse(source), io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            if value is not None:
                print(value)
    told.append(out.getvalue())
sys.stdout.write(json.dumps(told))
"""


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PAGE.read_text(encoding="utf-8"))
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
            env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "TERM": "dumb"},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    told: list[str] = json.loads(done.stdout)
    return told


def shown(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"])


def test_it_shows_what_it_prints() -> None:
    notebook = load()
    told = run(notebook)
    assert any("accuracy" in text for text in told)
    for cell, text in zip(code_cells(notebook), told, strict=True):
        before = shown(cell)
        pair = [re.sub(r"[ -]+", " ", NUMBER.sub("#", t)) for t in (before, text)]
        assert pair[0] == pair[1], "run `python tests/test_notebook.py`"
        numbers = [[float(n) for n in NUMBER.findall(t)] for t in (before, text)]
        assert all(abs(a - b) <= TOLERANCE for a, b in zip(*numbers, strict=True)), (before, text)


def test_it_is_a_notebook() -> None:
    notebook = load()
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [
        *range(1, len(code_cells(notebook)) + 1)
    ]


if __name__ == "__main__":
    page = load()
    for number, (cell, text) in enumerate(zip(code_cells(page), run(page), strict=True), 1):
        lines = text.splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = (
            [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
        )
    PAGE.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
