"""Consent as a person gives it: at a terminal, with the host typed back."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]
HOST = "llm.invalid"  # a name that no server ever has (RFC 2606)


def at_a_terminal(folder: Path, typed: str, dataset: str) -> tuple[int, str]:
    """Status and screen of a generation with images, where `typed` answers its question."""
    master, slave = pty.openpty()
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    env |= {"PYTHONPATH": str(REPO), "TERM": "dumb", "COLUMNS": "200"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "vipbench", "symptoms", "generate", "--dataset", dataset),
            *("--modality", "photos of skin", "--model", "toy", "--send-images"),
            *("--base-url", f"http://{HOST}:9/v1", "-o", str(folder / "s.json")),
            *("--max-requests", "1"),
        ],
        stdin=slave, stdout=slave, stderr=slave, env=env, cwd=folder, close_fds=True,
    )  # fmt: skip
    os.close(slave)
    screen, answered, end = b"", False, time.monotonic() + 120
    while time.monotonic() < end:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        screen += part
        if not answered and b"Type the host" in screen and screen.rstrip().endswith(b":"):
            os.write(master, typed.encode() + b"\n")
            answered = True
    status = process.wait(30)
    os.close(master)
    return status, screen.decode()


def write_data(folder: Path, sharing: str) -> str:
    """A small dataset under `sharing`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 255, (4, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
    np.savez(folder / "ward.npz", **arrays)
    (folder / "ward.yaml").write_text(
        f"class_names: [one, two]\nsharing: {sharing}\nlicence: CC0-1.0\n"
    )
    return f"npz:{folder / 'ward.npz'}"


@pytest.mark.parametrize(
    ("typed", "expected"), [("yes", f"--consent {HOST}"), (HOST, "connection")]
)
def test_a_wrong_word_sends_nothing_and_the_right_one_asks_the_host(
    tmp_path: Path, typed: str, expected: str
) -> None:
    dataset = write_data(tmp_path / "data", "allowed")
    status, screen = at_a_terminal(tmp_path, typed, dataset)
    assert status != 0
    assert expected in screen
    before, _, after = screen.partition("Type the host")
    for fact in (HOST, "toy", "4 of 'ward'", "CC0-1.0", "burned", "encrypted"):
        assert fact in before
    assert ("connection" in after) == (typed == HOST)
    # The very grids lie there to be looked at before the question.
    assert len(list((tmp_path / "s.json.grids").glob("*.png"))) == 2
    assert not (tmp_path / "s.json").exists()


def test_data_that_must_stay_are_refused_before_any_question(tmp_path: Path) -> None:
    status, screen = at_a_terminal(tmp_path, HOST, write_data(tmp_path / "data", "local"))
    assert status == 2
    assert "sent" in screen
    assert "Type" not in screen
