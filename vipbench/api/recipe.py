"""How the engine trains a method, as stored in the record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt

# Types of hyperparameters with their ranges. Any other range: Annotated[float, Gt(0), Le(5)] with
# annotated_types or pydantic's Field.
Count: TypeAlias = Annotated[int, Ge(1)]
Whole: TypeAlias = Annotated[int, Ge(0)]
Positive: TypeAlias = Annotated[float, Gt(0)]
NonNegative: TypeAlias = Annotated[float, Ge(0)]
Proportion: TypeAlias = Annotated[float, Ge(0), Le(1)]
ProportionBelowOne: TypeAlias = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class Views:
    """Training views of the support images, or views of the test images (`HParams.test_views`).

    count: None = a fresh view every epoch (the papers' augmentation); V = a bank of V seeded
        views, epoch e uses view e mod V; 0 = the evaluation view only.
    scale: area range of the random resized crop; the aspect ratio is drawn from (3/4, 4/3).
    flip: whether half of the views are mirrored.
    """

    count: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True


@dataclass(frozen=True)
class Recipe:
    """One training run as a paper states it.

    Exactly one of `epochs` and `iterations` is set; an epoch is one pass over the support set.
    epochs=0 trains nothing: training-free methods and methods with their own `fit` request `views`
    in this way. `batch_size` None is the full support set.
    `drop_last` drops an epoch's incomplete last batch where there is at least one full batch.
    schedule: "warmup-cosine" (epoch 0 at `warmup_lr`, then cosine over the epochs),
        "cosine-step" (cosine over all steps down to `min_lr`), or "constant".
    pooled: batches are drawn from the images of all views together, as many of them as one pass
        over the support set has (CLAP); a batch may then be larger than the support set.
    epoch_weights: one weight per epoch; the final parameters are the weighted mean of those at the
        end of each epoch (PromptSRC). None: the last step's parameters.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    epochs: int | None = 50
    iterations: int | None = None
    schedule: Literal["warmup-cosine", "cosine-step", "constant"] = "warmup-cosine"
    warmup_lr: float = 1e-5
    min_lr: float = 0.0
    batch_size: int | None = 32
    drop_last: bool = True
    shuffle: bool = True
    views: Views = Views()
    pooled: bool = False
    epoch_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("a Recipe sets either epochs or iterations, not both and not neither")
        if self.epoch_weights is not None and len(self.epoch_weights) != self.epochs:
            raise ValueError(
                f"epoch_weights has {len(self.epoch_weights)} values for {self.epochs} epochs"
            )


@dataclass(frozen=True)
class Published:
    """The protocol under which a method's paper reports few-shot results: validation images per
    class, in terms of the shots k, and which epoch is scored. `--profile published` follows it."""

    validation: Literal["none", "k", "min(k,4)", "full"] = "none"
    selection: Literal["last", "best_val"] = "last"


@dataclass(frozen=True)
class CellInfo:
    """What hyperparameters may depend on.

    shots: images per class, or None for the full training set. n_support: N.
    """

    shots: int | None
    n_support: int
    n_classes: int
    backbone: str
    dim: int
    width: int
    dataset: str


@dataclass(frozen=True)
class Range:
    """The search range of `vipbench tune` for the number `name`: `low` to `high`, both included;
    `log`: uniform in the logarithm. An int field gets whole numbers."""

    name: str
    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a Range needs low < high, both finite, got {self}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic Range needs low > 0, got {self}")


@dataclass(frozen=True)
class Choice:
    """The values that `vipbench tune` tries for `name`."""

    name: str
    values: tuple[str | int | float | bool | None, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"a Choice needs two values or more, got {self.values}")


@dataclass(frozen=True)
class HParams:
    """A method's hyperparameters, with the paper's values as defaults.

    Subclass it as a frozen dataclass named `HParams` inside the method. Field types are str, int,
    float, bool, their unions with None, or Literal: the command line sets them by name. `Annotated`
    types (`Count`, `Positive`, …) give a number its range; a value outside it is refused. Without
    one, `lr`, `batch_size`, `epochs` and the like have the range of their name. Where nothing sets
    a limit, numbers go to a million: single precision overflows far beyond it.

    tunes: the search space of `vipbench tune`; hyperparameters that it does not name keep their
    values. If it is empty, a field `lr` with a numeric default is searched from a tenth of it to
    ten times it.
    """

    tunes: ClassVar[tuple[Range | Choice, ...]] = ()

    def for_cell(self, info: CellInfo) -> HParams:
        """These hyperparameters with the values that the paper sets for each cell filled in."""
        return self

    def recipe(self, info: CellInfo) -> Recipe | None:
        """What the engine runs; None where nothing is trained, or `fit` is the method's own."""
        return None

    def backbones(self) -> tuple[str, ...]:
        """Names of further backbones, as `--backbones` takes them. Images then reach the method as
        the features of the run's backbone and of these side by side: `x.split(task.dims, -1)` takes
        them apart. For methods whose `inputs` are "features"."""
        return ()

    def test_views(self) -> Views:
        """Of a method that needs "test_views": the views of each test image that are scored beside
        the evaluation view. `count` is their number V, 1 or more."""
        return Views()

    def notes(self, info: CellInfo) -> tuple[str, ...]:
        """What a reader must know of these settings: kept in the record, shown below tables."""
        return ()

    def quick(self, info: CellInfo) -> HParams:
        """These hyperparameters made cheap, for `--profile quick`: unpublished settings, marked
        as such. Default: no change."""
        return self
