"""From a run to its explanation, its prompt files, and what they say elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
from PIL import Image
from safetensors import safe_open

Cli = Callable[..., "CompletedProcess[str]"]


def test_run_explain_prompts_predict_evaluate(cli: Cli, toy: Path, tmp_path: Path) -> None:
    symptoms = tmp_path / "s.json"
    symptoms.write_text(
        json.dumps({"dark": ["a black <b>field</b>", "low light"], "bright": ["a white field"]})
    )
    run = tmp_path / "run"
    done = cli(
        "run", "--methods", "vip[epochs=2]", "--datasets", f"npz:{toy / 'toy.npz'}",
        "--backbones", "tiny-clip", "--shots", "2", "--seeds", "1", "--symptoms", symptoms,
        "--out", run,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = tmp_path / "p.html"
    done = cli("explain", run, "--errors", "2", "-o", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "not embedded" in text or "data:image" not in text  # no licence says that it may be
    assert "<b>field" not in text
    assert "&lt;b&gt;field" in text
    assert "<script" not in text
    assert "http" not in text
    Image.fromarray(np.full((28, 28), 230, np.uint8)).save(tmp_path / "own.png")
    done = cli(
        "explain", run, "-o", page, "--embed-images", "--images",
        tmp_path / "own.png", tmp_path / "own.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert page.read_text().count("data:image/png") == 2
    done = cli("prompts", run, "-o", tmp_path / "prompts")
    assert done.returncode == 0, done.stderr
    (prompt,) = (tmp_path / "prompts").glob("*.safetensors")
    with safe_open(prompt, framework="np") as file:
        card = json.loads(file.metadata()["vipbench"])
        assert "context" in file.keys()  # noqa: SIM118
    assert card["class_names"] == ["dark", "bright"]
    assert "Research only" in prompt.with_suffix(".md").read_text()
    done = cli("evaluate", prompt, "--dataset", f"npz:{toy / 'toy.npz'}")
    assert done.returncode == 0, done.stderr
    assert f"accuracy: {card['test_accuracy']:.4f}" in done.stdout
    done = cli("predict", prompt, tmp_path / "own.png")
    assert "not for clinical use" in done.stdout
    assert "own.png" in done.stdout
    done = cli("evaluate", prompt, "--dataset", "synthderm")
    assert done.returncode == 2
    assert "matched by name" in done.stderr
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    done = cli("predict", bad, tmp_path / "own.png")
    assert done.returncode == 2
    assert "is no prompt file" in done.stderr
