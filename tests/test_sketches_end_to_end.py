"""All nine sketches of docs/contract-sketches.md as a single-file plugin, through the command line.

This is what says that the engine keeps what the contract promises to methods that the package does
not ship yet: noise, own loops, images with taps, epoch weights, transduction.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from tests.conftest import Cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "contract-sketches.md"

# A CLIP with random weights: quick, and nothing here is about accuracy.
TOWERS = """
import open_clip
import vipbench
from vipbench.backbones.towers.clip import ClipBackbone, clip_wordpieces
from vipbench.datasets.synthderm import SynthDerm

CONFIG = {
    "embed_dim": 32,
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2},
}


class Described(SynthDerm):
    def __init__(self):
        super().__init__()
        self.name = "described"
        pairs = self.symptoms.items()
        self.descriptions = {name: [f"{name}, {text}" for text in texts] for name, texts in pairs}


def towers(argument):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**CONFIG)
    return ClipBackbone(model, name="random", config=CONFIG, wordpieces=clip_wordpieces())


@vipbench.hookimpl
def register_backbones(register):
    register("random", towers)


@vipbench.hookimpl
def register_datasets(register):
    register("described", lambda argument: Described())


@vipbench.hookimpl
def register_methods(register):
    for method in (ProGrad, BiomedCoOp, LPPlusPlus, TipAdapterF, BayesianPrompts, MaPLe, PromptSRC,
                   CLIPLoRA, TransCLIP):
        # A name of its own: the package may ship the method.
        register(type(method.__name__, (method,), {"name": f"sketch-{method.name}"}))
"""
METHODS = [
    "sketch-prograd[epochs=3]",
    "sketch-biomedcoop[epochs=1,texts=4]",
    "sketch-lpp[iterations=20]",
    "sketch-tip-adapter-f[steps_beta=3,steps_alpha=2]",
    "sketch-bayesian-prompts[epochs=1,samples=2]",
    "sketch-maple[epochs=2]",
    "sketch-promptsrc[epochs=2,average_mean=1.0,average_std=1.0]",
    "sketch-clip-lora[iterations_per_shot=2]",
    "sketch-transclip",
]


def test_all_run(cli: Cli, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "sketches.py").write_text("\n".join([*blocks, TOWERS]))

    done = cli(
        *("run", "--plugins-dir", plugins, "--backbones", "random", "--datasets", "described"),
        *("--methods", ",".join(METHODS), "--shots", "1", "--seeds", "1,2", "--out", "results"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = cli("table", "results", "--format", "csv", "--metric", "accuracy", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    numbers = {row["method"]: (row["n"], row["n_expected"]) for row in rows}
    for label in METHODS:
        assert numbers[label] == ("2", "2"), label
