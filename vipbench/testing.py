"""The conformance suite: what every method, backbone and dataset must keep to.

For a plugin's own tests:

    from vipbench.testing import check_method

    def test_mine():
        check_method(MyMethod)

Each check raises ConformanceError, which names the rule and shows the smallest case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vipbench.api import (
    SPLITS,
    Backbone,
    Batch,
    CellInfo,
    Dataset,
    ImageBackbone,
    Labelled,
    Method,
    Recipe,
    Support,
    Task,
    has_own_fit,
    pads_batches,
)
from vipbench.engine.evaluation.foreign import ForeignModelError, Models
from vipbench.engine.guard import FrozenTexts, GlobalRandomError, Guard, SpoiltError, own_randomness
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training.stacking import TrainCell, partition
from vipbench.engine.training.step import last_batch
from vipbench.engine.training.trainer import train
from vipbench.engine.training.written import WrittenStateError
from vipbench.plugins.registry import load_registry

CLASSES = ("dark disc", "bright square", "grey ring")
SYMPTOMS = (("low values", "round edge"), ("high values",), ("hollow middle", "even rim"))
DESCRIPTIONS = tuple(tuple(f"a {name} seen {i} times" for i in range(60)) for name in CLASSES)
SHOTS, EPOCHS, TOLERANCE = 3, 3, 1e-3
# How far padding may move a loss or a gradient, in relation to its largest value: rounding.
PADDING = 1e-5
# Epochs after which a loss must have been lower than in the first; more where few do not do it.
LEARNING = (4, 40)
TEXTS = frozenset({"text", "symptoms", "descriptions"})


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
) -> None:
    """All rules of methods, on made-up images of three classes. backbone: by default tiny-clip.
    epochs: of training, few so that it is quick. stacking: whether to try two cells as one, too."""
    try:
        _check_method(method, backbone, epochs, stacking)
    except ForeignModelError as error:
        raise ConformanceError("no model of its own", str(error)) from error
    except WrittenStateError as error:
        raise ConformanceError("steps change state by after_step alone", str(error)) from error
    except GlobalRandomError as error:
        raise ConformanceError("deterministic", str(error)) from error


def _check_method(
    method: type[Method], backbone: ImageBackbone | None, epochs: int, stacking: bool
) -> None:
    tower = backbone or load_registry().backbone("tiny-clip")[0]
    guard = Guard(tower, FrozenTexts())
    guard.arm()
    first, again = (_trained(method, tower, [1], epochs)[0] for _ in range(2))
    x = _images(tower, method, 9, seed=99)[0]
    scores, repeated = _scores(first, x), _scores(again, x)
    what = f"{method.name}, {len(x)} images, {len(CLASSES)} classes"
    if tuple(scores.shape) != (len(x), len(CLASSES)):
        raise ConformanceError("shapes", f"{what}: scores have shape {tuple(scores.shape)}")
    if not bool(torch.isfinite(scores).all()):
        row = int((~torch.isfinite(scores)).any(1).nonzero()[0])
        raise ConformanceError("finite", f"{what}: image {row} has {scores[row].tolist()}")
    if not torch.equal(scores, repeated):
        raise ConformanceError(
            "deterministic", f"{what}: twice the same cell, scores {_apart(scores, repeated)}"
        )
    if "test_images" not in method.needs:
        for rows in ([0], [3, 1]):
            alone = _scores(first, x[rows])
            if not torch.allclose(alone, scores[rows], atol=TOLERANCE, rtol=TOLERANCE):
                raise ConformanceError(
                    "each image's logits are its own",
                    f"{what}: images {rows} alone and among all, {_apart(alone, scores[rows])}",
                )
    try:
        guard.check(what)
    except SpoiltError as error:
        raise ConformanceError("frozen weights are untouched", str(error)) from None
    if method.uses_support and pads_batches(method) and not has_own_fit(method):
        _check_padding(method, tower)
    if method.uses_support and stacking and not has_own_fit(method):
        _check_stacking(method, tower, epochs)
    if method.uses_support:
        _check_learning(method, tower)


def check_backbone(backbone: ImageBackbone) -> None:
    """All rules of backbones."""
    first = backbone.preprocess(_picture(0, 64))
    pixels = torch.stack([first.clone(), *(backbone.preprocess(_picture(c, 64)) for c in (1, 2))])
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
        raise ConformanceError("finite", "features of a plain picture are not finite")
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


def _check_stacking(method: type[Method], tower: ImageBackbone, epochs: int) -> None:
    """Cells with different supports, of unequal size: stacked equal looped."""
    shots = {1: SHOTS, 2: 1}
    stacked = _trained(method, tower, [1, 2], epochs, shots=shots)
    x = _images(tower, method, 5, seed=99)[0]
    for seed, together in zip((1, 2), stacked, strict=True):
        alone = _trained(method, tower, [seed], epochs, shots=shots)[0]
        a, b = _scores(together, x), _scores(alone, x)
        if not torch.allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE):
            raise ConformanceError(
                "stacked equal looped",
                f"{method.name}, cells of {SHOTS} shots and 1 shot, the one of {shots[seed]}: "
                f"{_apart(a, b)}",
            )


def _check_padding(method: type[Method], tower: ImageBackbone) -> None:
    """Images of weight 0, with other labels, leave losses and gradients as they are."""
    cell = _cell(method, tower, 1)
    if cell is None:
        return
    made, support = cell.method, cell.support
    x, labels = _images(tower, method, 5, seed=77)
    more_x = torch.cat([support.plain, x])
    more_labels = torch.cat([support.labels, (labels + 1).to(support.labels) % len(CLASSES)])
    weight = torch.cat([torch.ones(len(support.labels)), torch.zeros(len(x))]).to(tower.device)
    for steps in (0, 3):
        if steps:
            recipe = dataclasses.replace(_short(cell.recipe, 1), epochs=None, iterations=steps)
            train([dataclasses.replace(cell, recipe=recipe)])
        _fill_noise(made, cell.generator)
        whole = Batch(support.plain, support.labels, torch.ones_like(support.labels).to(weight))
        own = _gradients(made, whole)
        padded = _gradients(made, Batch(more_x, more_labels, weight))
        for name, value in own.items():
            apart = float((value - padded[name]).abs().max())
            if not apart <= PADDING * max(float(value.abs().max()), PADDING):
                raise ConformanceError(
                    "padding changes nothing",
                    f"{method.name}, after {steps} steps, {len(x)} images of weight 0: {name} "
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


def _check_learning(method: type[Method], tower: ImageBackbone) -> None:
    """Images of the toy's classes are separated after training; where texts decide, whose made-up
    class names mean nothing to the towers, it is enough that training lowers its own loss."""
    if method.needs & TEXTS and not has_own_fit(method):
        losses: list[float] = []
        for epochs in LEARNING:
            cells: list[TrainCell] = []
            _trained(method, tower, [1], epochs, cells)
            losses = [entry["loss"] for cell in cells for entry in cell.history]
            # Another order of the same images already moves their mean by rounding.
            if losses and min(losses[1:]) < losses[0] - 2e-6 * max(1.0, abs(losses[0])):
                return
        if losses:
            raise ConformanceError(
                "learns the toy",
                f"{method.name}: its loss over {len(losses)} epochs is {_list(losses)}",
            )
    trained = _trained(method, tower, [1], None)[0]
    x, labels = _images(tower, method, 12, seed=5)
    accuracy = float((_scores(trained, x).argmax(1).cpu() == labels).float().mean())
    if accuracy < 0.5:
        raise ConformanceError(
            "learns the toy", f"{method.name}: accuracy {accuracy:.2f} on three plain classes"
        )


def _trained(
    method: type[Method],
    tower: ImageBackbone,
    seeds: Sequence[int],
    epochs: int | None,
    cells: list[TrainCell] | None = None,
    shots: Mapping[int, int] | None = None,
) -> list[Method]:
    """One prepared, trained and finished method a seed; together where they stack. cells: takes
    what the engine trained. shots: of each seed, by default SHOTS."""
    cells = [] if cells is None else cells
    built: list[_Built] = []
    for seed in seeds:
        one = _built(method, tower, seed, (shots or {}).get(seed, SHOTS))
        built.append(one)
        if one.support is None:
            continue
        if has_own_fit(method):
            with _called([one.method], training=True):
                one.method.fit(one.support)
        elif one.recipe is not None and one.recipe.epochs != 0:
            recipe = _short(one.recipe, epochs)
            cells.append(TrainCell(one.method, recipe, one.support, one.generator))
    for part in partition(cells):
        with _called([cell.method for cell in part], training=True):
            train(part)
    for one in built:
        one.method.eval()
        _fill_noise(one.method, one.generator)
        if one.support is not None:
            with _called([one.method]):
                one.method.finish(one.support)
    return [one.method for one in built]


@dataclass
class _Built:
    """A cell whose method is built and prepared. recipe: None where the engine trains nothing."""

    method: Method
    recipe: Recipe | None
    support: Support | None
    generator: Callable[[str], torch.Generator]


# What the code of a method built and called since it was made.
_models: WeakKeyDictionary[Method, Models] = WeakKeyDictionary()


@contextmanager
def _called(methods: Sequence[Method], training: bool = False) -> Iterator[None]:
    """As in a run: what methods draw from global generators is found, and models of their own."""
    method = methods[0]
    models = _models[method]
    seed, who = method.task.generator("global").initial_seed(), f"method '{method.name}'"
    with models.watch(who, training), own_randomness(seed, who, method.task.device):
        yield
    _check_models(models, methods)


def _check_models(models: Models, methods: Sequence[Method]) -> None:
    """As in a run: of users' methods alone."""
    method = methods[0]
    if type(method).__module__.startswith("vipbench.methods."):
        return
    recipe = method.hparams.recipe(method.task.info) if method.uses_support else None
    trains = recipe is not None and recipe.epochs != 0 and not has_own_fit(type(method))
    models.check(methods, [method.task.image_backbone, *_further(type(method))], trains)


def _built(method: type[Method], tower: ImageBackbone, seed: int, shots: int = SHOTS) -> _Built:
    generator = cell_generator("conformance", shots, seed)
    n = shots * len(CLASSES)
    info = CellInfo(
        shots, n, len(CLASSES), tower.name, tower.dim, getattr(tower, "width", 0), "toy"
    )
    task = Task(tower, CLASSES, ("a photo of a {}.",), SYMPTOMS, info, generator, {}, DESCRIPTIONS,
                dims=(tower.dim, *(further.dim for further in _further(method))))  # fmt: skip
    hparams = method.HParams().for_cell(info)
    if has_own_fit(method):  # whose length no recipe tells
        hparams = hparams.quick(info)
    support = _support(tower, method, seed, shots) if method.uses_support else None
    who, first = f"method '{method.name}'", generator("global").initial_seed()
    models = Models()
    with models.watch(who), own_randomness(first, who, task.device, draws=True):
        made = method(task, hparams).to(task.device)
        for name, shape in made.noise().items():
            setattr(made, name, torch.zeros(shape, device=task.device))
        if support is not None:
            made.prepare(support)
    _models[made] = models
    _check_models(models, [made])
    return _Built(made, hparams.recipe(info), support, generator)


def _cell(method: type[Method], tower: ImageBackbone, seed: int) -> TrainCell | None:
    """A cell ready to train; None where the engine trains nothing."""
    one = _built(method, tower, seed)
    if one.recipe is None or one.recipe.epochs == 0 or one.support is None:
        return None
    return TrainCell(one.method, one.recipe, one.support, one.generator)


def _fill_noise(method: Method, generator: Callable[[str], torch.Generator]) -> None:
    for name, shape in method.noise().items():
        value = torch.randn(*shape, generator=generator(f"noise-eval/{name}"))
        setattr(method, name, value.to(method.task.device))


def _short(recipe: Recipe, epochs: int | None) -> Recipe:
    if epochs is None:
        return recipe
    # At its full rate from the first epoch on: the warm-up alone would fill a short training.
    return dataclasses.replace(
        recipe, epochs=epochs, iterations=None, epoch_weights=None, schedule="constant"
    )


def _support(tower: ImageBackbone, method: type[Method], seed: int, shots: int = SHOTS) -> Support:
    x, labels = _images(tower, method, shots * len(CLASSES), seed)
    val_x, val_labels = _images(tower, method, 6, seed + 50)
    device = tower.device
    return Support(
        x, labels.to(device), len(CLASSES), shots, val=Labelled(val_x, val_labels.to(device))
    )


def _images(tower: ImageBackbone, method: type[Method], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n images, class by class in turn, as the method takes them, and their labels (n,)."""
    labels = torch.arange(n) % len(CLASSES)
    images = [_picture(int(c), 64, seed * 1000 + i) for i, c in enumerate(labels)]
    pixels = torch.stack([tower.preprocess(p) for p in images]).to(tower.device)
    if method.inputs == "images":
        return pixels, labels
    every = [(tower, pixels)]
    for further in _further(method):
        shown = torch.stack([further.preprocess(p) for p in images]).to(tower.device)
        every.append((further, shown))
    with torch.no_grad():
        return torch.cat([one.encode_image(shown) for one, shown in every], dim=-1), labels


def _further(method: type[Method]) -> list[ImageBackbone]:
    """The backbones that a method reads beside the run's."""
    return [_load(name) for name in method.HParams().backbones()]


@lru_cache(maxsize=4)
def _load(name: str) -> ImageBackbone:
    return load_registry().backbone(name)[0]


def _picture(label: int, side: int, seed: int = 0) -> Any:
    """An RGB picture of class `label`: its brightness and colour tell."""
    from PIL import Image

    noise = torch.randint(0, 40, (side, side, 3), generator=torch.Generator().manual_seed(seed))
    noise[..., label] += 180
    return Image.fromarray(noise.to(torch.uint8).numpy())


@torch.no_grad()
def _scores(method: Method, x: Tensor) -> Tensor:
    if "test_views" in method.needs:
        x = x.unsqueeze(1).repeat_interleave(1 + (method.hparams.test_views().count or 0), dim=1)
    given = x.clone()
    with _called([method]):
        scores = method.predict(given)
    if not torch.equal(given, x):
        what = f"{method.name}: predict changed the images or features that it was given"
        raise ConformanceError("test images are untouched", what)
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        what = f"{method.name}: predict gave {got}; expected floating-point scores"
        raise ConformanceError("shapes", what)
    return scores


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _apart(a: Tensor, b: Tensor) -> str:
    return f"apart by up to {float((a - b).abs().max()):.2g}"
