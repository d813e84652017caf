"""A step does nothing that a CUDA graph cannot hold: it waits for no result, and takes nothing
from the CPU's memory.

There the values would be read once, at the recording. All here is on the CPU; see
`vipbench.engine.other_device`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.backbones.test_openclip_dual import Case
from tests.engine.test_replay import Tapes, same
from vipbench import api, testing
from vipbench.backbones.towers.clip import ClipBackbone
from vipbench.engine.other_device import DeviceError, Labels, watched
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training.cuda_graphs import (
    FEWEST,
    WARM,
    Recording,
    ReplayError,
    Replays,
    replays,
)
from vipbench.engine.training.stacking import TrainCell, can_stack
from vipbench.engine.training.trainer import train
from vipbench.plugins.registry import load_registry

# Methods whose steps are taken one by one, and why: none.
NOT_RECORDED: dict[str, str] = {}


class Watched(Tapes):
    """Tapes that watch over the step which must not wait, and over the recording."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = 0

    def warm(self, work: Callable[[], None], strict: bool) -> None:
        if strict:
            self._watch(lambda: super(Watched, self).warm(work, strict))
        else:
            super().warm(work, strict)

    def record(self, work: Callable[[], None]) -> Recording:
        made: list[Recording] = []
        self._watch(lambda: made.append(super(Watched, self).record(work)))
        return made[0]

    def _watch(self, work: Callable[[], None]) -> None:
        labels = Labels(known=True, strict=True)
        with watched(labels):
            work()
        self.watched += labels.seen


METHODS = {found.name: found.target for found in load_registry().methods.values()}


def info_of(tower: api.Backbone) -> api.CellInfo:
    n = testing.SHOTS[0] * len(testing.CLASSES)
    return api.CellInfo(testing.SHOTS[0], n, 3, tower.name, tower.dim, tower.width, "toy")


def trained() -> list[str]:
    """Methods on features that the engine trains as one."""
    info = info_of(tiny())
    names = []
    for name, method in METHODS.items():
        usable = method.stackable and method.inputs == "features" and not api.has_own_fit(method)
        recipe = method.HParams().for_cell(info).recipe(info)
        if usable and recipe is not None and recipe.epochs != 0:
            names.append(name)
    return names


def tiny() -> api.Backbone:
    tower, _ = load_registry().backbone("tiny-clip")
    assert isinstance(tower, api.Backbone)
    return tower


TINY = tiny()
TRAINED = trained()


def support_of(tower: api.Backbone, seed: int) -> api.Support:
    """Features of noise images, class by class in turn, with validation images."""
    classes, shots = len(testing.CLASSES), testing.SHOTS[0]
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(shots * classes + 6) % classes
    noise = torch.randint(0, 40, (len(labels), 64, 64, 3), generator=draws, dtype=torch.uint8)
    for image, label in zip(noise, labels.tolist(), strict=True):
        image[..., label] += 180
    pixels = torch.stack([tower.preprocess(Image.fromarray(one.numpy())) for one in noise])
    with torch.no_grad():
        x = tower.encode_image(pixels.to(tower.device))
    n, labels = shots * classes, labels.to(tower.device)
    return api.Support(x[:n], labels[:n], classes, shots, val=api.Labelled(x[n:], labels[n:]))


def made(method: type[api.Method], tower: api.Backbone, seed: int, **hparams: Any) -> TrainCell:
    """A cell of `method` on the conformance suite's toy, for just enough steps."""
    info = info_of(tower)
    generator = cell_generator("on device", testing.SHOTS[0], seed)
    task = api.Task(
        tower, testing.CLASSES, ("a photo of a {}.",), testing.SYMPTOMS, info, generator, {},
        testing.DESCRIPTIONS,
    )  # fmt: skip
    chosen = method.HParams(**hparams).for_cell(info)
    recipe = chosen.recipe(info)
    assert recipe is not None
    built = method(task, chosen).to(tower.device)
    for name, shape in built.noise().items():
        setattr(built, name, torch.zeros(shape, device=tower.device))
    support = support_of(tower, seed)
    built.prepare(support)
    built.train()
    recipe = dataclasses.replace(
        recipe, epochs=None, iterations=FEWEST, schedule="constant", epoch_weights=None
    )
    return TrainCell(built, recipe, support, generator)


def check(method: type[api.Method], tower: api.Backbone, n: int, **hparams: Any) -> bool:
    """Whether the steps of `n` cells can be recorded, and then, repeated, give the same numbers."""
    plain, repeated = (
        [made(method, tower, seed, **hparams) for seed in range(n)] for _ in range(2)
    )
    assert n == 1 or can_stack(plain)
    notes: list[str] = []
    watched = Watched()
    repeats = Replays(watched, notes.append)
    try:
        train(repeated, replays=repeats)
    except ReplayError as error:
        if not isinstance(error.__cause__, DeviceError):
            raise
        print(error)
        return False
    train(plain)
    same(repeated, plain)
    assert notes == []
    assert repeats.replayed == FEWEST - WARM
    assert watched.watched > 20
    return True


@pytest.mark.parametrize("n", [2, 1])
@pytest.mark.parametrize("name", TRAINED)
def test_steps_of_every_method(name: str, n: int) -> None:
    assert check(METHODS[name], TINY, n) == (name not in NOT_RECORDED)


@pytest.mark.parametrize(
    ("name", "hparams"),
    [
        ("vip", {"position": "middle", "merge": "mean"}),
        ("vip", {"context": False}),
        ("vip", {"class_specific": True, "merge": "max"}),
        ("coop", {"position": "front"}),
    ],
)
def test_steps_of_other_settings(name: str, hparams: dict[str, Any]) -> None:
    assert check(METHODS[name], TINY, 2, **hparams)


def test_steps_in_half_precision() -> None:
    tower = tiny()
    tower.training_precision = "bf16"
    assert check(METHODS["vip"], tower, 2)


def test_steps_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the memory does not hold all texts at once."""
    tower = tiny()
    assert isinstance(tower, ClipBackbone)
    tower.memory_budget = 200_000
    texts = tuple(tuple(f"{part} round edge and dark rim {i}" for i in range(6)) for part in "abc")
    monkeypatch.setattr(testing, "SYMPTOMS", texts)
    prompts = tower.embed([[("", f"{text}.") for text in row] for row in texts])
    packing = tower._packed(prompts, 4, torch.Size()).packing
    assert len(packing.parts(tower.memory_budget // 10_000)) > 1
    assert check(METHODS["vip"], tower, 2)


@pytest.mark.parametrize("kind", ["bert-mean", "coca", "siglip"])
def test_steps_on_other_text_towers(kind: str, tmp_path: Path) -> None:
    tower = Case(kind, tmp_path / "model").backbone
    assert check(METHODS["coop"], tower, 2, n_ctx=4)


class Bad(api.Method):
    """Its loss does what `how` does to a weight."""

    name = "bad"
    kind = "AD"
    needs = frozenset()
    how: Any = None

    @dataclasses.dataclass(frozen=True)
    class HParams(api.HParams):
        def recipe(self, info: api.CellInfo) -> api.Recipe:
            return api.Recipe()

    def __init__(self, task: api.Task, hparams: Any) -> None:
        super().__init__(task, hparams)
        self.weight = torch.nn.Parameter(task.normal("weight", 3, task.info.dim))
        self.known = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + type(self).how(self)


@pytest.mark.parametrize(
    ("how", "works"),
    [
        (lambda m: m.weight.new_ones(3), True),
        (lambda m: torch.arange(3, device=m.weight.device), True),
        (lambda m: torch.where(m.known > 0, 1.0, 2.0), True),
        (lambda m: torch.tensor(3.0) * m.known, True),
        (lambda m: torch.tensor([1.0, 2.0, 3.0]).to(m.weight), False),
        (lambda m: torch.zeros(3).to(m.weight.device), False),
        (lambda m: torch.zeros(6)[:3] + m.known, False),
        (lambda m: m.known[[2, 1, 0]], False),
        (lambda m: m.known[m.known > 0], False),
        (lambda m: m.known.sum().item(), False),
        (lambda m: m.known.nonzero().squeeze(-1), False),
        (lambda m: 1.0 if m.known.any() else 2.0, False),
        (lambda m: m.known.cpu(), False),
        (lambda m: sum(m.known.tolist()), False),
        (lambda m: torch.rand(3, device=m.weight.device), False),
    ],
)
def test_what_is_refused(how: Any, works: bool) -> None:
    method = type("One", (Bad,), {"how": staticmethod(how), "HParams": Bad.HParams})
    assert check(method, TINY, 1) == works


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in TRAINED if name not in NOT_RECORDED])
def test_on_a_gpu(name: str, precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real recording of every method's step."""
    monkeypatch.setenv("VIPBENCH_CUDA_GRAPHS", "1")
    tower = tiny()
    tower.to("cuda")
    tower.training_precision = precision
    notes: list[str] = []
    repeats = replays(tower.device, notes.append)
    assert repeats is not None
    plain, repeated = ([made(METHODS[name], tower, seed) for seed in range(2)] for _ in range(2))
    train(plain)
    train(repeated, replays=repeats)
    assert notes == []
    assert repeats.replayed == FEWEST - WARM
    for one, other in zip(plain, repeated, strict=True):
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-2, atol=1e-3)
