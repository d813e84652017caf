"""The conformance suite, on all that is registered, and on plugins that break a rule each."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api
from vipbench.cli.commands.check import KINDS, check_command
from vipbench.cli.commands.new import new_command
from vipbench.plugins.registry import load_registry
from vipbench.testing import (
    ConformanceError,
    check_backbone,
    check_dataset,
    check_method,
    plain_image,
)

Cli = Callable[..., "CompletedProcess[str]"]
REGISTRY = load_registry()
TOWER = REGISTRY.backbone("tiny-clip")[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.mark.parametrize("name", sorted(REGISTRY.methods))
def test_every_method_keeps_the_rules(name: str, cache: Path) -> None:
    method = REGISTRY.methods[name].target
    # Images are never stacked, and take long.
    check_method(method, TOWER, epochs=2, stacking=method.inputs == "features", cache=cache)


def test_the_bundled_backbone_and_dataset_keep_the_rules() -> None:
    check_backbone(TOWER)
    check_dataset(REGISTRY.dataset("synthderm")[0])


class Plain(api.Method):
    """Keeps the rules."""

    name = "plain"
    kind = "TF"
    needs = frozenset({"text"})
    uses_support = False

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.task.n_classes]


class Own(Plain):
    """Brings a network along."""

    def __init__(self, task: api.Task, hparams: Any) -> None:
        super().__init__(task, hparams)
        self.nets = [nn.Sequential(nn.Linear(task.info.dim, 8), nn.Linear(8, 3))]

    def forward(self, x: Tensor) -> Tensor:
        return self.nets[0](x)


class Several(Plain):
    """Reads two backbones, and views of the test images."""

    needs = frozenset({"test_views"})

    @dataclass(frozen=True)
    class HParams(api.HParams):
        def backbones(self) -> tuple[str, ...]:
            return ("tiny-clip",)

        def test_views(self) -> api.Views:
            return api.Views(count=2)

    def forward(self, x: Tensor) -> Tensor:
        own, other = x.split(self.task.dims, -1)
        assert torch.allclose(own, other, atol=1e-5)
        return super().forward(x)

    def predict(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        assert not torch.equal(x[:, 1], x[:, 2])
        return self(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class Scaling(Plain):
    """Changes what it was given."""

    def predict(self, x: Tensor) -> Tensor:
        x /= 2
        return self(x)


class Votes(Plain):
    """Gives whole numbers."""

    def predict(self, x: Tensor) -> Tensor:
        return F.one_hot(self(x).argmax(1), 3)


@pytest.mark.parametrize(
    ("method", "rule"), [(Scaling, "test images are untouched"), (Votes, "shapes")]
)
def test_predict_is_held_to_what_a_run_holds_it_to(method: type[Plain], rule: str) -> None:
    with pytest.raises(ConformanceError) as raised:
        check_method(method, TOWER)
    assert raised.value.rule == rule


def test_a_model_of_its_own_is_refused_and_further_backbones_are_given() -> None:
    check_method(Several, TOWER)
    with pytest.raises(ConformanceError, match=r"HParams\.backbones"):
        check_method(Own, TOWER)


class Scripted(Plain):
    """Calls a network from a file, whose layers PyTorch calls by itself."""

    nets: ClassVar[list[Any]] = []

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.nets[0](x))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_model_of_its_own_is_refused() -> None:
    net = nn.Sequential(nn.Linear(TOWER.dim, 8), nn.Linear(8, TOWER.dim))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, TOWER.dim)), buffer)
    buffer.seek(0)
    Scripted.nets[:] = [torch.jit.load(buffer)]
    with pytest.raises(ConformanceError, match=r"HParams\.backbones"):
        check_method(Scripted, TOWER)


class Shape(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]


class Nan(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log()


class Mates(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Dice(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1)


class Deaf(Plain):
    needs = frozenset()
    uses_support = True

    def forward(self, x: Tensor) -> Tensor:
        return x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 3)


class DeafPrompts(Plain):
    """Trains a context that nothing reads."""

    uses_support = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """The recipe alone."""

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            return api.Recipe()

    def __init__(self, task: api.Task, hparams: api.HParams) -> None:
        super().__init__(task, hparams)
        self.context = nn.Parameter(torch.zeros(4, 8))

    def loss(self, batch: api.Batch) -> Tensor:
        return super().loss(batch) + 0 * self.context.sum()


class Trained(Plain):
    """A linear layer that the engine trains."""

    needs = frozenset()
    uses_support = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """The recipe alone."""

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            return api.Recipe(lr=0.1)

    def __init__(self, task: api.Task, hparams: api.HParams) -> None:
        super().__init__(task, hparams)
        self.weight = nn.Parameter(task.normal("weight", task.n_classes, task.info.dim))
        self.temperature = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) @ self.weight.T * (1 + self.temperature)


class Unweighted(Trained):
    """Declares what its loss does not do."""

    pads = True

    def loss(self, batch: api.Batch) -> Tensor:
        return F.cross_entropy(self(batch.x), batch.labels)


class Later(Trained):
    """Its loss sees the padding as soon as the temperature has moved."""

    pads = True

    def loss(self, batch: api.Batch) -> Tensor:
        own = batch.mean(F.cross_entropy(self(batch.x), batch.labels, reduction="none"))
        return own + 100 * self.temperature**2 * self(batch.x).square().mean()


class Counts(Trained):
    """Sets an attribute in a step."""

    steps = 0

    def loss(self, batch: api.Batch) -> Tensor | tuple[Tensor, ...]:
        self.steps += 1
        return super().loss(batch)


class Drops(Trained):
    """Draws its dropout from the global generator, as a run would refuse."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), training=self.training)


class Layered(Trained):
    """A layer with PyTorch's initial values: a run seeds those."""

    def __init__(self, task: api.Task, hparams: api.HParams) -> None:
        super().__init__(task, hparams)
        self.layer = nn.Linear(task.info.dim, task.n_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(F.normalize(x, dim=-1))
        return logits


class Views(Layered):
    """With a loss of its own; it is trained on views."""

    def prepare(self, support: api.Support) -> None:
        assert support.n_views == 2
        assert not torch.equal(support.view(0), support.view(1))

    def loss(self, batch: api.Batch) -> Tensor:
        return F.cross_entropy(self(batch.x), batch.labels)


with torch.no_grad():
    FILES = TOWER.encode_image(
        torch.stack([TOWER.preprocess(plain_image(i % 3, 64, 2000 + i)) for i in range(12)])
    )


class Order(Plain):
    """Reads all test images, which do not come in the order of files."""

    needs = frozenset({"test_images"})

    def __init__(self, task: api.Task, hparams: api.HParams) -> None:
        super().__init__(task, hparams)
        self.files = FILES.to(task.device)

    def predict(self, x: Tensor) -> Tensor:
        own = self.files.to(x.device)
        order = torch.cdist(own, x).argmin(1).tolist()
        assert sorted(order) == list(range(len(x)))
        assert order != sorted(order)
        return self(x - x.mean(0))


def test_what_a_run_takes_the_check_takes() -> None:
    for method in (Layered, Views, Order):
        check_method(method, TOWER)


FILE = """
import torch

import vipbench
from vipbench import api


class Beside(api.Method):
    name, kind, needs, uses_support = "beside", "TF", frozenset(), False

    class HParams(api.HParams):
        def backbones(self):
            return ("thumbnail:4",)

    def forward(self, x):
        return x.split(self.task.dims, -1)[1][:, :3]


@vipbench.hookimpl
def register_methods(register):
    register(Beside)
"""


def test_a_further_backbone_of_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
    thumbnail = next(b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "Thumbnail" in b)
    file = tmp_path / "both.py"
    file.write_text(thumbnail + FILE)
    assert check_command(str(file), None, None) == 0, capsys.readouterr().out


class FirstCells(Trained):
    """Its loss draws from the task of whichever cell it is called on."""

    def loss(self, batch: api.Batch) -> Tensor:
        noise = torch.randn(self.weight.shape, generator=self.task.generator("noise"))
        noise = noise.to(batch.x.device)
        return F.cross_entropy(self(batch.x) + batch.x @ noise.T, batch.labels)


class InPlace(Trained):
    """Normalises in place what other cells read too."""

    needs = frozenset({"text"})

    def __init__(self, task: api.Task, hparams: api.HParams) -> None:
        super().__init__(task, hparams)
        texts = task.text_features(task.class_texts())
        texts /= texts.norm(dim=-1, keepdim=True)


class Refused(Several):
    """Reads a backbone that nobody has."""

    @dataclass(frozen=True)
    class HParams(Several.HParams):
        """One that is not there."""

        def backbones(self) -> tuple[str, ...]:
            return ("no-such-backbone",)


class Viewless(Several):
    """Asks for views of the test images, and for none."""

    @dataclass(frozen=True)
    class HParams(Several.HParams):
        """No number of views."""

        def test_views(self) -> api.Views:
            return api.Views(count=0)


class Unsaid(Plain):
    """Cannot be where it says so itself."""

    def __init__(self, task: api.Task, hparams: api.HParams) -> None:
        super().__init__(task, hparams)
        raise api.UnsupportedError("not on this tower")


class Centred(Trained):
    """The default loss, of a forward that reads the batch in training."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0) if self.training else x)


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        (Unweighted, "padding changes nothing"),
        (Later, "padding changes nothing"),
        (Centred, "padding changes nothing"),
        (FirstCells, "stacked equal looped"),
        (InPlace, "frozen weights are untouched"),
        (Refused, "can be planned"),
        (Viewless, "can be planned"),
        (Unsaid, "can be planned"),
        (Counts, "steps change state by after_step alone"),
        (Drops, "deterministic"),
        (DeafPrompts, "learns the toy"),
        (Shape, "shapes"),
        (Nan, "finite"),
        (Mates, "each image's logits are its own"),
        (Dice, "deterministic"),
        (Deaf, "learns the toy"),
    ],
)
def test_a_broken_rule_is_named(method: type[api.Method], rule: str) -> None:
    check_method(Plain, TOWER)
    with pytest.raises(ConformanceError) as caught:
        check_method(method, TOWER)
    assert caught.value.rule == rule
    assert method.name in str(caught.value)


class Twice(api.Dataset):
    """Two images of one id."""

    name = "twice"
    class_names = ("a", "b")

    def load(self, root: Path | None) -> dict[str, Any]:
        images = [np.zeros((4, 4), np.uint8)] * 2
        split = api.Split(images, np.array([0, 1]), ("same", "same"))
        return dict.fromkeys(("train", "val", "test"), split)


def test_a_broken_dataset_is_named() -> None:
    with pytest.raises(ConformanceError, match=r"'same' .*'train'"):
        check_dataset(Twice())


def test_a_new_file_keeps_the_rules_at_once(tmp_path: Path) -> None:
    for kind in KINDS:
        new_command(kind, f"my-{kind}", tmp_path)
    registry = load_registry(tmp_path)
    check_method(registry.methods["my-method"].target, TOWER)
    check_backbone(registry.backbone("my-backbone")[0])
    check_dataset(registry.dataset("my-dataset")[0])


def test_check_from_the_command_line(cli: Cli, tmp_path: Path) -> None:
    assert cli("new", "dataset", "mine", "--plugins-dir", tmp_path).returncode == 0
    again = cli("new", "dataset", "mine", "--plugins-dir", tmp_path)
    assert again.returncode == 2
    assert "--plugins-dir" in again.stderr
    good = cli("check", tmp_path / "mine.py")
    assert good.returncode == 0
    assert good.stdout.startswith("dataset mine: pass")
    file = tmp_path / "mine.py"
    file.write_text(file.read_text().replace('f"{name}-{i}"', '"same"'))
    broken = cli("check", file)
    assert broken.returncode == 1
    assert re.search("dataset mine: broken: .*'same' ", broken.stdout)
    assert "'coop'" in cli("check", "coopp").stderr
