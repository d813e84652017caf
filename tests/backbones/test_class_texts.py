"""Classes that a text tower cannot tell apart: impossible cells that name them, before a run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.backbones import hub_models
from tests.backbones.clips import class_folder
from tests.conftest import Cli


def test_class_lists_are_read_before_a_run(cli: Cli, tmp_path: Path) -> None:
    """The tokenizer of whole words knows "nevus" and "melanoma" and nothing else of these."""
    hub_models.save_dual(tmp_path / "model")
    lists = {
        "unknown": ("nevus", "histiocytoma"),
        "alike": ("nevus of Ota", "nevus of Ito", "melanoma"),
        "partly": ("nevus", "desmoplastic melanoma"),
    }
    done = cli(
        *("run", "--backbones", f"transformers:{tmp_path / 'model'}", "--shots", "1"),
        *(
            "--datasets",
            ",".join(f"folder:{class_folder(tmp_path / n, *c)}" for n, c in lists.items()),
        ),
        *("--methods", "zero-shot,ncm", "--seeds", "1", "--dry-run", "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert "'histiocytoma'" in output
    assert "'nevus of Ito' and 'nevus of Ota'" in output
    assert output.count("'zero-shot'") == 2
    assert "'ncm' reads" not in output
    assert re.search(r"'desmoplastic'.*'partly'", output)
