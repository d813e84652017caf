"""docs/cli.md shows what the program says.

`python tests/cli/test_docs.py` writes its blocks anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
BLOCK = re.compile(r"```console\n\$ vipbench( [a-z]+)? --help\n(.*?)```", re.DOTALL)


def say(words: str | None) -> str:
    """What `vipbench WORDS --help` prints on a terminal of 80 columns."""
    root = str(PAGE.parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "vipbench", *(words or "").split(), "--help"],
        env={**os.environ, "COLUMNS": "80", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def written_anew(page: str) -> str:
    """The page with every --help block as the program has it now."""
    return BLOCK.sub(
        lambda m: f"```console\n$ vipbench{m[1] or ''} --help\n{say(m[1])}```",
        page,
    )


def test_help_blocks() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = [(m[1] or "").strip() for m in BLOCK.finditer(page)]
    assert shown[:6] == ["", "run", "table", "compare", "plot", "list"]
    assert page == written_anew(page), "run `python tests/cli/test_docs.py`"


def test_suite_blocks_and_keys() -> None:
    from vipbench.runspec.run import RunSpec

    page = PAGE.read_text(encoding="utf-8")
    suites = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert suites
    for text in suites:
        RunSpec.from_yaml_text(text, "docs/cli.md")
    table = page[page.index("| key |") : page.index("[Protocol]")]
    keys = {key for row in re.findall(r"^\| (`.*?) \|", table, re.M) for key in row.split(", ")}
    assert {key.strip("`") for key in keys} == set(RunSpec.model_fields)


def test_metrics_are_named() -> None:
    from vipbench.results.records.metrics import METRICS

    page = PAGE.read_text(encoding="utf-8")
    for metric in METRICS:
        assert f"`{metric}" in page


if __name__ == "__main__":
    PAGE.write_text(written_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
