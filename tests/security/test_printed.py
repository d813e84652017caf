"""Nothing that a file brought reaches the terminal as a control character."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cli
from tests.results.samples import unscored
from vipbench.cli.commands.predict import FORMATS
from vipbench.results.records.csv import write_records
from vipbench.results.sharing.bundle import write_bundle
from vipbench.results.sharing.rows import COLUMNS, export_rows
from vipbench.results.store.store import Collection

# Puts a text on the clipboard; the same with the one-byte introducers; turns the text around.
HOSTILE = "a\x1b]52;c;cm0=\x07b\x9d52;c;cm0=\x9cc\r\u202e\x08"
CONTROLS = [chr(n) for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"] + ["\u202e"]


def files(folder: Path) -> dict[str, tuple[str, ...]]:
    """Of each way, the command that tells of a hostile file."""
    suite = b"datasets: ['npz:PATH']\n"
    source = {HOSTILE: {"source": "npz:PATH"}}
    with Collection(folder / "one") as store:
        store.add(*unscored(1))
        [row] = export_rows(store, None, with_scores=False)
    write_bundle(
        folder / "b.zip", {"suite.yaml": suite, "records.jsonl": json.dumps(row).encode()},
        {"title": HOSTILE, "vipbench": HOSTILE, "datasets": source, "requires": {HOSTILE: HOSTILE}},
    )  # fmt: skip
    (folder / "suite.yaml").write_text(json.dumps({"methods": [HOSTILE]}))
    (folder / "keys.yaml").write_text(json.dumps({HOSTILE: 1}))
    (folder / "images").mkdir()
    for name in ("x", "y"):
        (folder / "images" / name).mkdir()
        (folder / "images" / name / "1.png").touch()
    rows = [["x/1.png", 0, HOSTILE], [HOSTILE, 1, "y"]]
    split = {"train": rows, "val": rows, "test": rows}
    (folder / "images" / "split.json").write_text(json.dumps(split))
    (folder / "symptoms.json").write_text(json.dumps({HOSTILE: ["red"], "nevus": [HOSTILE]}))
    known = {"format": "vipbench-prompt", "version": 1, "row": "a", "method": "vip"}
    card = json.dumps(known | {"method_revision": 1, "hparams": {HOSTILE: []}})
    header = json.dumps({"__metadata__": {"vipbench": card}}).encode()
    (folder / "prompt.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return {
        "bundle": ("reproduce", str(folder / "b.zip"), "--out", str(folder / "out")),
        "suite": ("run", str(folder / "suite.yaml"), "--dry-run"),
        "key of a suite": ("run", str(folder / "keys.yaml")),
        "split": ("audit", f"split:{folder / 'images' / 'split.json'}"),
        "symptoms": ("symptoms", "check", str(folder / "symptoms.json"), "--dataset", "synthderm"),
        "prompt file": ("predict", str(folder / "prompt.safetensors"), "image.png"),
        "argument": ("table", f"{folder}/{HOSTILE}"),
        "code": ("run", "--plugins-dir", str(folder / "plugins"), "--dry-run"),
    }


WAYS = ("bundle", "suite", "key of a suite", "split", "symptoms", "prompt file", "argument", "code")


@pytest.mark.parametrize("way", WAYS)
def test_messages(cli: Cli, tmp_path: Path, way: str) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "bad.py").write_text(f"raise ValueError({HOSTILE!r})")
    done = cli(*files(tmp_path)[way], cwd=tmp_path)
    assert done.returncode
    printed = done.stdout + done.stderr
    assert "\\u001b" in printed or "\\x1b" in printed
    for stream in (done.stdout, done.stderr):
        assert not [control for control in CONTROLS if control in stream]


def test_a_line_of_an_error_is_as_short_as_any(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(COLUMNS) + "\n" + "9" * 3000 + "x" * 1_000_000)
    done = cli("import", tmp_path / "a.csv", "--out", tmp_path / "out", "--submitter", "eve")
    assert done.returncode == 2
    assert "export_schema" in done.stderr
    assert len(done.stderr) < 5_000


def test_a_class_name_is_no_formula_of_a_spreadsheet() -> None:
    text = FORMATS[".csv"](["=1+1", "b"], ["@a.png"], ["=1+1"], np.array([[-0.5, -2.0]]))
    assert text == "image,predicted,'=1+1,b\n'@a.png,'=1+1,-0.5,-2.0\n"


def test_files_that_people_print(tmp_path: Path) -> None:
    record, _ = unscored(1)
    hostile = record.model_copy(
        update={"cell": record.cell.model_copy(update={"dataset": HOSTILE}), "notes": [HOSTILE]}
    )
    write_records(tmp_path / "results.csv", [hostile])
    text = (tmp_path / "results.csv").read_text()
    assert text.count("\\u001b]52") == 2
    assert not [control for control in CONTROLS if control in text]
