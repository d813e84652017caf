"""Runs under each protocol, from the command line to records and tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load

from vipbench.engine.planning.sampling import quotas
from vipbench.plugins.registry import load_registry
from vipbench.results.records.record import Record
from vipbench.results.store.store import Store

Cli = Callable[..., "CompletedProcess[str]"]
TINY = ("--backbones", "tiny-clip", "--views", "none")

COUNTED = '''
"""A prompt method that counts its steps."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import vipbench
from vipbench import api


class Counted(api.Method):
    """One shift of all class texts."""

    name = "counted"
    kind = "TP"
    stackable = False

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """No setting."""

        def recipe(self, info):
            return api.Recipe(epochs=1, views=api.Views(count=0))

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.classes = task.class_features()
        self.shift = nn.Parameter(torch.zeros(task.info.dim))

    def forward(self, x):
        return self.task.cosine_logits(x, self.classes + self.shift)

    def loss(self, batch):
        with Path(os.environ["TOY_STEPS"]).open("a") as file:
            file.write("step\\n")
        return super().loss(batch)


class Picky(Counted):
    """Scores the classes alone that it was trained on."""

    name = "picky"

    def loss(self, batch):
        return api.Method.loss(self, batch)

    def predict(self, x):
        if self.task.class_names[0] != "velmorid nevoma":
            raise ValueError("never seen")
        return super().predict(x)


class Stubborn(Counted):
    """Says that it transfers nothing."""

    name = "stubborn"
    transfers = False


@vipbench.hookimpl
def register_methods(register):
    register(Counted)
    register(Picky)
    register(Stubborn)
'''


def records(folder: Path) -> dict[tuple[str, str, int], Record]:
    with Store(folder, readonly=True) as store:
        return {(r.cell.method, r.cell.dataset, r.cell.seed): r for r in store.records()}


def class_texts(context: torch.Tensor, names: list[str]) -> torch.Tensor:
    """The texts that CoOp makes of a learned context, (C,D) of unit length."""
    backbone, _ = load_registry(None).backbone("tiny-clip")
    with torch.no_grad():
        prompts = backbone.embed([("", f"{name}.") for name in names])  # type: ignore[attr-defined]
        return F.normalize(backbone.encode_text(prompts, context), dim=-1)  # type: ignore


def test_base_to_new_trains_once_and_tests_both_halves(cli: Cli, tmp_path: Path) -> None:
    plugins, steps, out = tmp_path / "plugins", tmp_path / "steps", tmp_path / "out"
    plugins.mkdir()
    (plugins / "counted.py").write_text(COUNTED)
    run = (
        *("run", "--protocol", "base-to-new", "--datasets", "synthderm", *TINY, "--shots", "1"),
        *(
            "--methods",
            "zero-shot,coop[epochs=4,lr=0.05],counted,picky,stubborn,linear-probe,taskres",
        ),
        *("--seeds", "1,2", "--plugins-dir", plugins, "--out", out),
    )
    done = cli(*run, env={"TOY_STEPS": str(steps)})
    assert done.returncode == 1, done.stdout + done.stderr
    # What fails on one half leaves the other its number.
    assert done.stdout.count("failed: picky on synthderm [new]") == 2
    assert "failed: picky on synthderm [base]" not in done.stdout
    # One training a seed, whatever it is tested on: a look at what a step writes, and the step.
    assert steps.read_text().count("step") == 2 * 2
    for method, why in (
        ("linear-probe", "fitted"),
        ("taskres", "'residual'"),
        ("stubborn", "classes"),
    ):
        [line] = [li for li in done.stdout.splitlines() if li.startswith(f"impossible: {method}")]
        assert why in line
        assert re.search(r"synthderm \[base\].*synthderm \[new\].*tiny-clip.*4 cells", line)
    found = records(out)
    with Store(out, readonly=True) as store:
        label = "coop[epochs=4,lr=0.05]"
        base, new = (found[label, f"synthderm [{part}]", 1] for part in ("base", "new"))
        learned, scores = load(store.parameters(base.key) or b""), store.predictions(new.key)
        zero = store.predictions(found["zero-shot", "synthderm [new]", 0].key)
        assert store.parameters(new.key) is None
    assert base.protocol.model_dump().items() >= {"name": "base-to-new", "part": "base"}.items()
    assert base.provenance["cells_of_training"] == new.provenance["cells_of_training"] == 2
    assert base.history == new.history
    trained_on = new.provenance["trained_on"]
    assert trained_on["class_names"] == base.data.class_names
    assert not set(base.data.class_names) & set(new.data.class_names)
    assert new.data.n_support == 3
    # The new classes are scored by the learned context around their own names: the temperature
    # apart, zero-shot scores and these are cosines of the same image features.
    assert scores is not None
    assert zero is not None
    assert scores.ids == zero.ids
    assert not np.allclose(scores.scores, zero.scores, atol=1e-2)
    texts = class_texts(learned["context"], new.data.class_names)
    dataset, _ = load_registry(None).dataset("synthderm")
    test = dataset.load(None)["test"]
    backbone, _ = load_registry(None).backbone("tiny-clip")
    rows = [test.ids.index(name) for name in scores.ids[:8]]
    with torch.no_grad():
        pixels = torch.stack([backbone.preprocess(test.open(i)) for i in rows])
        x = F.normalize(backbone.encode_image(pixels), dim=-1)
    expected = backbone.logit_scale * x @ texts.T  # type: ignore[attr-defined]
    np.testing.assert_allclose(scores.scores[:8], expected.numpy(), atol=2e-3)
    table = cli("table", out, "--preset", "base-to-new")
    assert table.returncode == 0, table.stderr
    [line] = [li for li in table.stdout.splitlines() if li.startswith("part")]
    assert line.split() == ["part", "base", "new", "H"]
    again = cli(*run, "--dry-run", env={"TOY_STEPS": str(steps)})
    assert "Cells: 26: 2 to do, 12 done, 12 impossible" in again.stdout


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of synthderm under one name of their own, more of the one in training."""
    folder = tmp_path_factory.mktemp("others")
    dataset, _ = load_registry(None).dataset("synthderm")
    splits, arrays = dataset.load(None), {}
    for name, most in (("train", (20, 5)), ("val", (6, 6)), ("test", (10, 10))):
        split = splits[name]
        rows = [i for k, n in zip((4, 1), most, strict=True)
                for i in np.flatnonzero(split.labels == k)[:n].tolist()]  # fmt: skip
        arrays[f"{name}_images"] = np.stack([np.asarray(split.open(i)) for i in rows])
        labels = [int(split.labels[i] == 1) for i in rows]
        arrays[f"{name}_labels"] = np.array(labels, np.uint8)[:, None]
    np.savez(folder / "other.npz", **arrays)
    known = dataset.class_names[1]
    (folder / "other.yaml").write_text(f"class_names: [strange lesion, {known}]\n")
    return folder / "other.npz"


def test_transfers_go_on_from_a_few_shot_run(cli: Cli, tmp_path: Path, others: Path) -> None:
    out = tmp_path / "out"
    given = ("--methods", "zero-shot,coop[epochs=4,lr=0.05],linear-probe", *TINY, "--shots", "1")
    given = (*given, "--seeds", "1", "--out", str(out))
    assert cli("run", *given, "--datasets", "synthderm").returncode == 0
    pair = ("--datasets", f"synthderm,npz:{others}")
    cross = cli("run", *given, *pair, "--protocol", "cross-dataset")
    assert cross.returncode == 0, cross.stdout + cross.stderr
    # The source is what the few-shot run was tested on.
    assert "6: 2 to do, 2 done, 2 impossible" in cross.stdout
    assert "synthderm->other, Accuracy" in cross.stdout
    mapping = "{name: domain-shift, classes: {other: {strange lesion: sarnese_basalome}}}"
    shift = cli("run", *given, *pair, "--protocol", mapping)
    assert shift.returncode == 0, shift.stdout + shift.stderr
    assert "linear-probe" in shift.stdout.split("synthderm->other [shift]")[-1]
    found = records(out)
    label = "coop[epochs=4,lr=0.05]"
    source = found[label, "synthderm", 1]
    moved, kept = found[label, "synthderm->other", 1], found[label, "synthderm->other [shift]", 1]
    assert "name" not in source.protocol.model_dump()
    assert moved.protocol.model_dump().items() >= {
        "name": "cross-dataset", "source": "synthderm", "target": "other"
    }.items()  # fmt: skip
    assert moved.data.fingerprint != source.data.fingerprint
    assert moved.provenance["trained_on"]["fingerprint"] == source.data.fingerprint
    with Store(out, readonly=True) as store:
        of_source, of_moved, of_kept = (
            store.predictions(record.key) for record in (source, moved, kept)
        )
    assert of_source is not None
    assert of_moved is not None
    assert of_kept is not None
    # Shifted, an image has the scores that it has on the source, of the classes that are there.
    dataset, _ = load_registry(None).dataset("synthderm")
    labels = dataset.load(None)["test"].labels
    for row, k in ((0, 4), (10, 1)):
        first = int(np.flatnonzero(labels == k)[0])
        expected = of_source.scores[first, [4, 1]]
        np.testing.assert_allclose(of_kept.scores[row], expected, atol=2e-3)
    # Transferred, the name that the source does not know has its own text; the other stays.
    assert of_moved.scores.shape == (20, 2)
    assert not np.allclose(of_moved.scores[:, 0], of_kept.scores[:, 0], atol=1e-2)
    np.testing.assert_allclose(of_moved.scores[:, 1], of_kept.scores[:, 1], atol=2e-3)


def test_imbalanced_and_validation_free(cli: Cli, tmp_path: Path, others: Path) -> None:
    out = tmp_path / "out"
    run = ("run", "--methods", "ss-text,linear-probe", "--datasets", f"npz:{others}", *TINY)
    run = (*run, "--shots", "2,5", "--seeds", "1", "--out", str(out), "--protocol")
    assert cli(*run, "imbalanced").returncode == 0
    done = cli(*run, "validation-free", "--profile", "published")
    assert done.returncode == 0, done.stdout + done.stderr
    with Store(out, readonly=True) as store:
        found = {(r.cell.method, r.cell.dataset, r.cell.shots): r for r in store.records()}
    assert len(found) == 8
    for shots in (2, 5):
        drawn = found["ss-text", "other [imbalanced]", shots]
        assert drawn.data.model_dump()["support_counts"] == quotas([20, 5], 2 * shots)
        assert drawn.data.n_val == 2 * min(shots, 4)
        free = found["linear-probe", "other [validation-free]", shots]
        assert free.data.n_val == 0
        assert (free.protocol.validation, free.protocol.selection) == ("none", "last")
    assert (
        "Several protocols: validation-free on other [validation-free]; imbalanced" in done.stdout
    )


@pytest.mark.parametrize(
    ("name", "shots", "trained"),
    [
        ("coop-fewshot", "1", ("coop",)),
        (
            "biomedcoop-fewshot",
            "1",
            ("coop", "cocoop", "kgcoop", "prograd", "biomedcoop", "clip-adapter", "tip-adapter-f"),
        ),
        ("biomedcoop-base-to-new", "2", ("coop", "cocoop", "kgcoop", "prograd", "biomedcoop")),
    ],
)
def test_published_tables_run_in_a_reduced_form(
    cli: Cli, repo: Path, tmp_path: Path, name: str, shots: str, trained: tuple[str, ...]
) -> None:
    done = cli(
        *("run", repo / "benchmarks" / f"{name}.yaml", "--datasets", "synthderm", *TINY),
        *("--shots", shots, "--seeds", "1", "--out", tmp_path / "out"),
        *(f"--set={method}.epochs=1" for method in trained),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "impossible" not in done.stdout
    assert "– (" not in done.stdout
    assert "sampler coop" in done.stdout
    table = "base-to-new" if "new" in name else "fewshot"
    assert (tmp_path / "out" / f"{table}.md").is_file()
