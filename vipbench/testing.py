"""The conformance suite: what every method, backbone and dataset must keep to.

For a plugin's own tests:

    from vipbench.testing import check_method

    def test_mine():
        check_method(MyMethod)

Each check raises ConformanceError, which names the rule and shows the smallest case.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vipbench.api import (
    SPLITS,
    Backbone,
    Batch,
    Dataset,
    ImageBackbone,
    Method,
    Recipe,
    Split,
    TextError,
    UnsupportedError,
    has_own_fit,
    pads_batches,
)
from vipbench.backbones.towers import masks
from vipbench.engine.evaluation.foreign import ForeignModelError
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.evaluation.scoring import Finished, Ready, ScoreError
from vipbench.engine.features.features import Features
from vipbench.engine.guard import GlobalRandomError, SpoiltError, Weights
from vipbench.engine.other_device import Labels, another_device
from vipbench.engine.planning.cells import LoadedCell, Row, plan_cells
from vipbench.engine.planning.loading import TEXTS, Beside, LoadedBackbone, load_dataset, users
from vipbench.engine.planning.protocols import Scene
from vipbench.engine.precision import PrecisionError
from vipbench.engine.training.step import PaddingError, last_batch
from vipbench.engine.training.written import WrittenStateError
from vipbench.plugins.registry import Plugin, Registered, Registry, load_registry
from vipbench.runspec.run import RunSpec

CLASSES = ("dark disc", "bright square", "grey ring")
SYMPTOMS = (("low values", "round edge"), ("high values",), ("hollow middle", "even rim"))
DESCRIPTIONS = tuple(tuple(f"a {name} seen {i} times" for i in range(60)) for name in CLASSES)
# Cells of uneven support sets, each with several seeds: the larger first.
SHOTS, SEEDS = (3, 1), (1, 2)
# Images of each class in a split, and training views.
IMAGES, VIEWS = 4, 2
EPOCHS, TOLERANCE = 3, 1e-3
# How far padding may move a loss or a gradient, in relation to its largest value: rounding.
PADDING = 1e-5
# Epochs after which a loss must have been lower than in the first; more where few do not do it.
LEARNING = (5, 15, 40)

# What a run raises, and which rule that is.
RULES: dict[type[Exception], str] = {
    SpoiltError: "frozen weights are untouched",
    ForeignModelError: "no model of its own",
    WrittenStateError: "steps change state by after_step alone",
    GlobalRandomError: "deterministic",
    PaddingError: "padding changes nothing",
    PrecisionError: "precision is the run's",
}
RAISED: tuple[type[Exception], ...] = (ScoreError, *RULES)


class ConformanceError(AssertionError):
    """A rule is broken. rule: which one."""

    def __init__(self, rule: str, case: str) -> None:
        super().__init__(f"{rule}: {case}")
        self.rule = rule


def check_method(
    method: type[Method],
    backbone: ImageBackbone | None = None,
    epochs: int = EPOCHS,
    stacking: bool = True,
    registry: Registry | None = None,
    cache: Path | None = None,
) -> None:
    """All rules of methods, on made-up images of three classes, built, trained and scored as a run
    does it. backbone: by default tiny-clip. epochs: of training, few so that it is quick.
    stacking: whether to also try cells stacked with others. registry: where further backbones of
    the method are looked for, by default all plugins that are installed. cache: a folder for
    features, which several checks may share; by default a temporary one."""
    try:
        with TemporaryDirectory() as folder:
            toy = _Toy(method, backbone, registry or load_registry(), str(cache or folder))
            _check_method(toy, epochs, stacking)
    except RAISED as error:
        rule = error.rule if isinstance(error, ScoreError) else RULES[type(error)]
        raise ConformanceError(rule, str(error)) from error


def _check_method(toy: _Toy, epochs: int, stacking: bool) -> None:
    method = toy.method

    short = partial(_short, epochs=epochs)
    # The loop of a method's own has no recipe to be cut short by.
    cells = toy.cells("quick" if has_own_fit(method) else "matched")
    (item,), (done,) = toy.run(cells[:1], short)
    (_, (again,)) = toy.run(cells[:1], short)
    what = f"{method.name}, {IMAGES * len(CLASSES)} images, {len(CLASSES)} classes"
    if not torch.equal(_scores(done), _scores(again)):
        apart = _apart(_scores(done), _scores(again))
        raise ConformanceError("deterministic", f"{what}: twice the same cell, scores {apart}")
    if "test_images" not in method.needs:
        runner = toy.runner()
        runner.set_up(item.cell)
        for rows in ([0], [3, 1]):
            alone, among = runner.scores(item, rows), _scores(done)[rows]
            if not torch.allclose(alone, among, atol=TOLERANCE, rtol=TOLERANCE):
                raise ConformanceError(
                    "each image's logits are its own",
                    f"{what}: images {rows} alone and among all, {_apart(alone, among)}",
                )
    if method.uses_support and pads_batches(method) and not has_own_fit(method):
        _check_padding(toy, cells)
    if method.uses_support and stacking:
        _check_stacked(toy, cells, short, _scores(done))
    _check_device(toy, cells)
    if method.uses_support:
        _check_learning(toy)


def check_device(method: type[Method], backbone: ImageBackbone | None = None) -> None:
    """The rule of methods on devices alone: building, training and scoring work where the towers
    are on another device than the CPU; needs no GPU. backbone: by default tiny-clip."""
    with TemporaryDirectory() as folder:
        toy = _Toy(method, backbone, load_registry(), folder)
        _check_device(toy, toy.cells("quick" if has_own_fit(method) else "matched"))


def check_backbone(backbone: ImageBackbone) -> None:
    """All rules of backbones."""
    first = backbone.preprocess(plain_image(0, 64))
    pixels = torch.stack(
        [first.clone(), *(backbone.preprocess(plain_image(c, 64)) for c in (1, 2))]
    )
    if not torch.equal(first, pixels[0]):
        raise ConformanceError("each image's pixels are its own", "a later image overwrote them")
    side = backbone.image_size
    if tuple(pixels.shape[1:]) != (3, side, side):
        raise ConformanceError("shapes", f"preprocess gives {tuple(pixels.shape[1:])}, H is {side}")
    with torch.no_grad():
        features = backbone.encode_image(pixels.to(backbone.device))
        alone = backbone.encode_image(pixels[:1].to(backbone.device))
    if tuple(features.shape) != (3, backbone.dim):
        raise ConformanceError("shapes", f"encode_image gives {tuple(features.shape)} for 3 images")
    if not bool(torch.isfinite(features).all()):
        raise ConformanceError("finite", "features of a plain image are not finite")
    if not torch.allclose(alone, features[:1], atol=TOLERANCE, rtol=TOLERANCE):
        raise ConformanceError("each image's features are its own", _apart(alone, features[:1]))
    if not backbone.fingerprint or not backbone.name:
        raise ConformanceError("identity", "name and fingerprint must say something")
    if isinstance(backbone, Backbone):
        with torch.no_grad():
            texts = backbone.encode_text(backbone.embed(["a disc.", "a longer text of a square."]))
            short = backbone.encode_text(backbone.embed(["a disc."]))
        if tuple(texts.shape) != (2, backbone.dim):
            raise ConformanceError("shapes", f"encode_text gives {tuple(texts.shape)} for 2 texts")
        if not torch.allclose(short, texts[:1], atol=TOLERANCE, rtol=TOLERANCE):
            raise ConformanceError("each text's features are its own", _apart(short, texts[:1]))


def check_dataset(dataset: Dataset, root: Path | None = None) -> None:
    """All rules of datasets, on what `load(root)` gives."""
    splits = dataset.load(root)
    if set(splits) != set(SPLITS):
        raise ConformanceError("splits", f"load gives {sorted(splits)}, expected {list(SPLITS)}")
    names = dataset.class_names
    if len(set(names)) != len(names) or len(names) < 2:
        raise ConformanceError("classes", f"names must be two or more, each once; got {names}")
    if not all(t.count("{}") == 1 for t in dataset.templates):
        raise ConformanceError("templates", f"each holds one {{}}; got {dataset.templates}")
    for name, split in splits.items():
        if len(set(split.ids)) != len(split.ids):
            twice = next(i for i in split.ids if split.ids.count(i) > 1)
            raise ConformanceError("ids are unique", f"'{twice}' is twice in '{name}'")
        bad = [i for i, label in enumerate(split.labels) if not 0 <= label < len(names)]
        if bad:
            raise ConformanceError(
                "labels", f"image '{split.ids[bad[0]]}' of '{name}' has {split.labels[bad[0]]}"
            )
        if len(split):
            split.open(0)
    for part, texts in (("symptoms", dataset.symptoms), ("descriptions", dataset.descriptions)):
        if texts is not None and set(texts) != set(names):
            raise ConformanceError(part, f"given for {sorted(texts)}, the classes are {names}")
    once, again = (dataset.fingerprint(s) for s in (splits, dataset.load(root)))
    if once != again:
        raise ConformanceError("deterministic", "loaded twice, the fingerprints differ")


def _check_stacked(
    toy: _Toy, cells: Sequence[LoadedCell], short: Callable[[Recipe], Recipe], first: Tensor
) -> None:
    """Cells with different supports, of unequal size: together, stacked where they can be, equal
    each alone. first: scores of the first cell alone."""
    method = toy.method
    alone = method.inputs == "images" or method.trains_towers or has_own_fit(method)
    together = [cells[0], cells[-1]] if alone else cells
    try:
        _, done = toy.run(together, short)
    except RAISED:
        raise
    except Exception as error:
        raise ConformanceError(
            "stacked equal looped",
            f"{method.name}: cells train alone and not together ({type(error).__name__}: {error}); "
            "`stackable = False` keeps them apart",
        ) from error
    for number in (0, len(together) - 1):
        cell, a = together[number], _scores(done[number])
        b = _scores(toy.run([cell], short)[1][0]) if number else first
        if not torch.allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE):
            raise ConformanceError(
                "stacked equal looped",
                f"{method.name}, cells of {SHOTS[0]} and {SHOTS[1]} shots, one of {cell.shots}: "
                f"{_apart(a, b)}",
            )


def _check_device(toy: _Toy, cells: Sequence[LoadedCell]) -> None:
    """All cells at once, stacked where they can be, on a device beside the CPU."""
    labels, towers = Labels(), toy.towers(cells[0])
    if not all(Weights(tower).tensors for tower in towers):
        return  # without weights nothing tells where a tower's features are
    masks.forget()  # those of the cells before lie on the CPU
    try:
        with another_device(towers, labels):
            # A loop of the method's own takes each cell alone, and has no epochs to cut short.
            alone = has_own_fit(toy.method)
            toy.run(cells[:1] if alone else cells, partial(_short, epochs=1))
    except Exception:
        if labels.problem is None:
            raise
    if labels.problem is not None:
        raise ConformanceError("works on any device", f"{toy.method.name}: {labels.problem}")


def _check_padding(toy: _Toy, cells: Sequence[LoadedCell]) -> None:
    """Images of weight 0, with other labels, leave losses and gradients as they are."""
    for steps in (0, 3):
        runner = toy.runner()
        runner.set_up(cells[0])
        item, other = runner.prepared(cells[:2], partial(_short, epochs=1, steps=steps or 1))
        if not item.trained or item.support is None or other.support is None:
            return
        if steps:
            runner.train([item])
        made, support = item.method, item.support
        for name, shape in made.noise().items():
            value = torch.randn(*shape, generator=item.generator(f"noise-eval/{name}"))
            setattr(made, name, value.to(made.task.device))
        x, labels = other.support.plain, (other.support.labels + 1) % len(CLASSES)
        more_x = torch.cat([support.plain, x])
        more_labels = torch.cat([support.labels, labels])
        weight = torch.cat([torch.ones(len(support.labels)), torch.zeros(len(x))]).to(x.device)
        own = _gradients(made, Batch(support.plain, support.labels, weight[: len(support.labels)]))
        padded = _gradients(made, Batch(more_x, more_labels, weight))
        for name, value in own.items():
            apart = float((value - padded[name]).abs().max())
            if not apart <= PADDING * max(float(value.abs().max()), PADDING):
                raise ConformanceError(
                    "padding changes nothing",
                    f"{made.name}, after {steps} steps, {len(x)} images of weight 0: {name} "
                    f"{_apart(value, padded[name])}. Take means over the batch by `batch.mean`, or "
                    "override `loss` without `pads = True`, which gets no padding",
                )


def _gradients(method: Method, batch: Batch) -> dict[str, Tensor]:
    """The losses of a batch, for each of them the gradients of all parameters, and what
    `after_step` gives, by name."""
    method.train()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    losses = method.loss(batch)
    found: dict[str, Tensor] = {}
    for i, loss in enumerate(losses if isinstance(losses, tuple) else (losses,)):
        found[f"loss {i + 1}"] = loss.detach()
        grads = torch.autograd.grad(
            loss, list(trained.values()), retain_graph=True, materialize_grads=True
        )
        found |= {f"the gradient of '{k}'": g for k, g in zip(trained, grads, strict=True)}
    with torch.no_grad(), last_batch(method, batch):
        found |= {f"'{k}' of after_step": v.float() for k, v in method.after_step().items()}
    return found


def _check_learning(toy: _Toy) -> None:
    """Images of the toy's classes are separated after training; where texts decide, whose made-up
    class names mean nothing to the towers, it is enough that training lowers its own loss."""
    method, cells = toy.method, toy.cells()
    if method.needs & TEXTS and not has_own_fit(method):
        losses: list[float] = []
        for epochs in LEARNING:
            (item,), _ = toy.run(cells[:1], partial(_short, epochs=epochs))
            # Epochs with the first one's view: another view has another loss.
            losses = [entry["loss"] for entry in item.history][::VIEWS]
            # Another order of the same images already moves their mean by rounding.
            if losses and min(losses[1:]) < losses[0] - 2e-6 * max(1.0, abs(losses[0])):
                return
        if losses:
            raise ConformanceError(
                "learns the toy",
                f"{method.name}: its loss over {epochs} epochs is {_list(losses)}",
            )
    _, (done,) = toy.run(cells[:1])
    assert done.predictions is not None
    right = done.predictions.scores.argmax(1) == done.predictions.labels
    if right.mean() < 0.5:
        raise ConformanceError(
            "learns the toy", f"{method.name}: accuracy {right.mean():.2f} on three plain classes"
        )


class _ToyImages(Dataset):
    """Plain images of three classes."""

    name = "toy"
    class_names = CLASSES

    def __init__(self) -> None:
        self.symptoms = dict(zip(CLASSES, SYMPTOMS, strict=True))
        self.descriptions = dict(zip(CLASSES, DESCRIPTIONS, strict=True))

    def load(self, root: Path | None) -> dict[str, Split]:
        """See Dataset."""
        n = IMAGES * len(CLASSES)
        labels = np.arange(n) % len(CLASSES)
        found = {}
        for at, name in enumerate(SPLITS):
            images = [plain_image(int(c), 64, 1000 * at + i) for i, c in enumerate(labels)]
            found[name] = Split(images, labels, tuple(f"{name}-{i}" for i in range(n)))
        return found


class _Toy:
    """A method, a backbone and plain images, planned and run as `vipbench run` does it. folder:
    for the feature cache."""

    def __init__(
        self,
        method: type[Method],
        backbone: ImageBackbone | None,
        registry: Registry,
        folder: str,
    ) -> None:
        self.method, self._folder = method, Path(folder)
        known = [found.plugin for found in registry.methods.values() if found.target is method]
        self._plugin = known[0] if known else _plugin(method)
        own = Registered("dataset", "toy", registry.methods["zero-shot"].plugin, _made)
        registry = dataclasses.replace(registry, datasets={**registry.datasets, "toy": own})
        source = "tiny-clip"
        if backbone is None:
            backbone, plugin = registry.backbone(source)
        else:
            plugin = _plugin(type(backbone))
            source = backbone.name
        self._tower = LoadedBackbone(backbone, plugin, source)
        self._beside = Beside(registry, [self._tower], backbone.device)
        self._data = load_dataset(registry, RunSpec.parse({"datasets": ["toy"]}), "toy")

    def cells(self, profile: str = "matched") -> list[LoadedCell]:
        """A cell each for SHOTS and SEEDS, the larger first; of a method without support, of what
        a run has. Raises ConformanceError where a run would not have them."""
        shots, seeds = map(list, (SHOTS, SEEDS))
        spec = RunSpec.parse(
            {
                "datasets": ["toy"],
                "shots": shots,
                "seeds": seeds,
                "views": VIEWS,
                "profile": profile,
            }
        )
        row = Row(self.method.name, self.method, self._plugin, self.method.HParams())
        cells = plan_cells(spec, row, Scene(self._data), self._tower, self._beside)
        refused = cells[0].impossible
        if refused is None:
            try:
                self.runner().try_build(cells[0])
            except (UnsupportedError, TextError) as error:
                refused = str(error)
        if refused is not None:
            raise ConformanceError("can be planned", f"{self.method.name}: {refused}")
        return cells

    def towers(self, cell: LoadedCell) -> list[ImageBackbone]:
        """The backbones that a cell's method reads."""
        return [self._tower.backbone, *(tower.backbone for tower in cell.further)]

    def runner(self) -> GroupRunner:
        """A new one, with nothing left from others but features."""
        features = Features(
            self._tower.backbone,
            self._data.splits,
            self._data.fingerprint,
            plugins=users(self._tower, self._data),
            folder=self._folder,
        )
        runner = GroupRunner(features, lambda text: None)
        runner.guard.arm()
        return runner

    def run(
        self, cells: Sequence[LoadedCell], recipe: Callable[[Recipe], Recipe] = lambda one: one
    ) -> tuple[list[Ready], list[Finished]]:
        """Trains and scores cells as one group; whatever is wrong is raised."""
        runner = self.runner()
        runner.set_up(cells[0])
        with runner.guard.watch(f"method '{self.method.name}'"):
            ready = runner.trained(cells, recipe)
            return ready, runner.score([[cell] for cell in cells], ready)


def _made(argument: str | None) -> Dataset:
    return _ToyImages()


def _plugin(made: type[Any]) -> Plugin:
    """Of a class that is not registered: its module."""
    file = Path(getattr(sys.modules.get(made.__module__), "__file__", None) or made.__module__)
    builtin = made.__module__.startswith("vipbench.")
    return Plugin("vipbench" if builtin else file.stem, None, file, "", builtin)


def _short(recipe: Recipe, epochs: int, steps: int | None = None) -> Recipe:
    """The recipe with so many epochs, or steps."""
    if recipe.epochs == 0:
        return recipe
    # At its full rate from the first epoch on: the warm-up alone would fill a short training.
    return dataclasses.replace(
        recipe,
        epochs=None if steps else epochs,
        iterations=steps,
        epoch_weights=None,
        schedule="constant",
    )


def _scores(done: Finished) -> Tensor:
    assert done.predictions is not None
    return torch.from_numpy(done.predictions.scores)


def plain_image(label: int, side: int, seed: int = 0) -> Any:
    """An RGB image of class `label`: its brightness and colour tell."""
    from PIL import Image

    noise = torch.randint(0, 40, (side, side, 3), generator=torch.Generator().manual_seed(seed))
    noise[..., label] += 180
    return Image.fromarray(noise.to(torch.uint8).numpy())


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _apart(a: Tensor, b: Tensor) -> str:
    return f"apart by up to {float((a - b).abs().max()):.2g}"
