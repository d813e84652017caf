"""Planted leaks are found, and clean data stay clean."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli
from vipbench.api.dataset import Split
from vipbench.engine.planning.leaks import audit
from vipbench.plugins.registry import load_registry


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def resized(image: Image.Image, share: float) -> Image.Image:
    size = (round(image.width * share), round(image.height * share))
    return image.resize(size, Image.Resampling.BICUBIC)


ALTER: list[Callable[[Image.Image], Image.Image]] = [
    lambda image: jpeg(image, 50),
    lambda image: jpeg(image, 30),
    lambda image: resized(image, 0.5),
    lambda image: resized(image, 1.5),
    lambda image: jpeg(resized(image, 0.75), 60),
    lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    lambda image: jpeg(image.transpose(Image.Transpose.ROTATE_180), 60),
]


def splits_of(source: str) -> dict[str, Split]:
    dataset, _ = load_registry(None).dataset(source)
    return dict(dataset.load(None))


def with_images(split: Split, images: list[Image.Image], ids: list[str]) -> Split:
    every = [split.open(i) for i in range(len(split))]
    labels = np.concatenate([split.labels, np.zeros(len(images), dtype=np.int64)])
    return Split([*every, *images], labels, (*split.ids, *ids))


def measure(source: str) -> tuple[int, int, float]:
    """Of 100 planted each: exact and near copies found; the share of test images flagged when
    nothing is planted."""
    splits = splits_of(source)
    train = splits["train"]
    picked = np.random.default_rng(0).permutation(len(train))[:200].tolist()
    exact = {f"exact-{i}": i for i in picked[:100]}
    near = {f"near-{i}": i for i in picked[100:]}
    images = [train.open(i) for i in exact.values()]
    images += [ALTER[n % len(ALTER)](train.open(i)) for n, i in enumerate(near.values())]
    planted = with_images(splits["test"], images, [*exact, *near])
    found = audit("planted", "0", {"train": train, "test": planted})
    exact_found = {(p.id, p.other_id) for p in found.exact}
    near_found = {(p.id, p.other_id) for p in found.near or []}
    hits = [
        sum((train.ids[i], name) in pairs for name, i in wanted.items())
        for wanted, pairs in ((exact, exact_found), (near, exact_found | near_found))
    ]
    clean = audit("clean", "0", {"train": train, "test": splits["test"]})
    alarms = {p.other_id for p in clean.near or []} | {p.other_id for p in clean.exact}
    return hits[0], hits[1], len(alarms) / len(splits["test"])


def test_planted_copies_of_drawn_skin() -> None:
    exact, near, alarms = measure("synthderm")
    print(exact, near, alarms)
    assert exact == 100
    assert near >= 95
    assert alarms <= 0.01


def test_planted_copies_of_real_radiographs(shared: Path) -> None:
    [file] = shared.glob("data/pneumoniamnist28.npz")
    exact, near, alarms = measure(f"npz:{file}")
    print(exact, near, alarms)
    assert exact == 100
    assert near >= 95
    assert alarms <= 0.01


def test_groups_and_class_names(tmp_path: Path) -> None:
    def split(seed: int, groups: tuple[str, ...]) -> Split:
        noise = np.random.default_rng(seed).integers(0, 255, (4, 8, 8)).astype(np.uint8)
        return Split(list(noise), np.array([0, 0, 1, 1]), ("a", "b", "c", "d"), groups)

    splits = {"train": split(1, tuple("1234")), "test": split(2, tuple("4567"))}
    symptoms = [["a dark spot", "unlike a nevus"], ["even colour"]]
    found = audit("x", "0", splits, ["melanoma", "nevus"], symptoms)
    assert found.groups is not None
    assert "1 group" in found.groups
    assert re.search("'melanoma'.*'nevus': unlike a nevus", *found.symptoms)
    assert found.near is None
    assert not found.clean


def test_the_command_and_the_warning(tmp_path: Path, cli: Cli) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 255, (40, 28, 28)).astype(np.uint8)
    test = rng.integers(0, 255, (20, 28, 28)).astype(np.uint8)
    test[3] = train[7]
    labels = {name: (np.arange(n) % 2)[:, None] for name, n in (("train", 40), ("test", 20))}
    np.savez(
        tmp_path / "toy.npz",
        train_images=train, train_labels=labels["train"], val_images=test[:4] // 2,
        val_labels=labels["test"][:4], test_images=test, test_labels=labels["test"],
    )  # fmt: skip
    (tmp_path / "toy.yaml").write_text("class_names: [one, two]\n")
    env = {"VIPBENCH_CACHE": str(tmp_path / "cache")}
    source = f"npz:{tmp_path / 'toy.npz'}"
    done = cli("audit", source, env=env)
    assert done.returncode == 1, done.stderr
    assert "= test" in done.stdout
    assert "1 images" in done.stdout
    run = cli("run", "--methods", "zero-shot", "--datasets", source, "--backbones", "tiny-clip",
              "--dry-run", env=env)  # fmt: skip
    assert re.search("`vipbench audit`.* 1 ", run.stdout), run.stderr


@pytest.mark.parametrize("name", ["synthderm"])
def test_shipped_data_are_clean(name: str) -> None:
    splits = splits_of(name)
    assert audit(name, "0", splits).clean
