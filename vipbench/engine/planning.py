"""From a RunSpec to cells: what there is to run, under which key, and what cannot be and why."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vipbench.api import (
    SPLITS,
    Backbone,
    CellInfo,
    DataError,
    Dataset,
    HParams,
    ImageBackbone,
    ImageError,
    Method,
    Split,
)
from vipbench.engine import sampling
from vipbench.engine.hparams import make_hparams
from vipbench.engine.sampling import (
    Sampler,
    SamplingError,
    SupportIndices,
    Validation,
    draw_support,
)
from vipbench.errors import UsageError
from vipbench.plugins import Plugin, Registry
from vipbench.results.metrics import METRICS
from vipbench.spec import MethodSpec, RunSpec
from vipbench.symptoms import load_symptoms

# Part of every key: raise it when the engine's own numbers change (batch orders, views, scoring).
ENGINE_REVISION = 1


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset with its splits read and its symptoms bound."""

    dataset: Dataset
    plugin: Plugin
    splits: Mapping[str, Split]
    fingerprint: str
    symptoms: tuple[tuple[str, ...], ...] | None
    symptoms_sha256: str | None
    notices: tuple[str, ...]

    def counts(self, split: str) -> list[int]:
        """Images of each class in a split."""
        return self.splits[split].counts(len(self.dataset.class_names))


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with its weights."""

    backbone: ImageBackbone
    plugin: Plugin
    source: str


@dataclass(frozen=True)
class Row:
    """A method with its hyperparameters, as one row of a table."""

    label: str
    method: type[Method]
    plugin: Plugin
    hparams: HParams


@dataclass(frozen=True)
class Protocol:
    """How one cell is run, whichever method it is; see RunSpec for the words."""

    views: int | str
    sampler: Sampler
    validation: Validation
    selection: str
    precision: str

    @classmethod
    def of(cls, spec: RunSpec, method: type[Method]) -> Protocol:
        """The run's protocol, or, under the profile `published`, that of the method's paper."""
        validation, selection = spec.validation, spec.selection
        if spec.profile == "published":
            validation = method.published.validation
            selection = method.published.selection
        return cls(spec.views, spec.sampler, validation, selection, spec.precision)


@dataclass(frozen=True)
class PlanCell:
    """One number in a table, or the reason why it cannot be.

    shots: None is the full training set, 0 with seed 0 a zero-shot cell.
    """

    key: str
    row: Row
    data: LoadedDataset
    backbone: LoadedBackbone
    shots: int | None
    seed: int
    hparams: HParams
    info: CellInfo
    protocol: Protocol
    notes: tuple[str, ...] = ()
    impossible: str | None = None
    support: SupportIndices | None = field(default=None, repr=False)

    @property
    def group(self) -> tuple[str, str, str]:
        """Cells of one group can be trained as one."""
        return self.backbone.source, self.data.dataset.name, self.row.label


def load_dataset(registry: Registry, spec: RunSpec, source: str) -> LoadedDataset:
    """Read `source`; raises UsageError naming what is wrong with the data."""
    dataset, plugin = registry.dataset(source)
    try:
        splits = dict(dataset.load(spec.data_root))
        missing = [name for name in SPLITS if name not in splits]
        if missing:
            raise DataError(f"the splits {', '.join(missing)} are missing")
        _check_splits(dataset, splits)
        fingerprint = dataset.fingerprint(splits)
    except (DataError, ImageError) as error:
        raise UsageError(f"dataset '{source}': {error}") from error
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{plugin}: dataset '{source}' failed to load: {type(error).__name__}: {error}"
        ) from error
    notices: list[str] = []
    symptoms: Mapping[str, Any] | None = dataset.symptoms
    file = spec.symptoms.get(source, spec.symptoms.get(dataset.name, spec.symptoms.get("*")))
    if file is not None:
        try:
            loaded = load_symptoms(file, dataset.class_names)
        except DataError as error:
            raise UsageError(str(error)) from error
        symptoms = loaded.symptoms
        notices += [f"symptoms of '{dataset.name}': {w}" for w in loaded.warnings]
    bound = None
    digest = None
    if symptoms is not None:
        bound = tuple(tuple(symptoms[name]) for name in dataset.class_names)
        digest = _sha(bound)
    return LoadedDataset(dataset, plugin, splits, fingerprint, bound, digest, tuple(notices))


def load_backbone(registry: Registry, source: str) -> LoadedBackbone:
    """Load `source` with its weights; raises UsageError."""
    backbone, plugin = registry.backbone(source)
    return LoadedBackbone(backbone, plugin, source)


def make_rows(registry: Registry, specs: tuple[MethodSpec, ...]) -> list[Row]:
    """The table's rows; raises UsageError for unknown methods and hyperparameters."""
    rows = []
    for spec in specs:
        method, plugin = registry.method(spec.name)
        rows.append(Row(spec.label, method, plugin, make_hparams(method, spec.hparams)))
    return rows


def plan_cells(
    spec: RunSpec, row: Row, data: LoadedDataset, backbone: LoadedBackbone
) -> list[PlanCell]:
    """All cells of one row on one dataset and backbone."""
    grid: list[tuple[int | None, int]] = [(0, 0)]
    if row.method.uses_support:
        shots = [None if k == "full" else k for k in spec.shots]
        grid = [(k, seed) for k in shots for seed in spec.seeds]
    return [_plan_cell(spec, row, data, backbone, shots, seed) for shots, seed in grid]


def _plan_cell(
    spec: RunSpec,
    row: Row,
    data: LoadedDataset,
    backbone: LoadedBackbone,
    shots: int | None,
    seed: int,
) -> PlanCell:
    protocol = Protocol.of(spec, row.method)
    reason = impossible_pair(row.method, backbone.backbone, data)
    support = None
    names = data.dataset.class_names
    if shots != 0 and reason is None:
        try:
            support = draw_support(
                data.splits["train"], data.splits["val"], len(names), names, shots, seed,
                protocol.sampler, protocol.validation, data.fingerprint,
            )  # fmt: skip
        except SamplingError as error:
            reason = str(error)
    towers = backbone.backbone
    info = CellInfo(
        shots=shots,
        n_support=0 if support is None else len(support.train),
        n_classes=len(names),
        backbone=towers.name,
        dim=towers.dim,
        width=towers.width if isinstance(towers, Backbone) else 0,
        dataset=data.dataset.name,
    )
    hparams = row.hparams.for_cell(info)
    notes: tuple[str, ...] = ()
    if spec.profile == "quick" and hparams != (quick := hparams.quick(info)):
        hparams, notes = quick, ("profile quick: unpublished settings",)
    key = cell_key(protocol, row, hparams, data, towers, shots, seed)
    return PlanCell(
        key, row, data, backbone, shots, seed, hparams, info, protocol, notes, reason, support
    )


def impossible_pair(
    method: type[Method], backbone: ImageBackbone, data: LoadedDataset
) -> str | None:
    """Why this method cannot run there, or None."""
    needs = method.needs
    if needs & {"text", "symptoms"} and not isinstance(backbone, Backbone):
        return f"'{method.name}' needs a text tower and '{backbone.name}' has none"
    if "vit" in needs and not backbone.vision_layers:
        return f"'{method.name}' needs a vision transformer and '{backbone.name}' is none"
    if "symptoms" in needs and data.symptoms is None:
        name = data.dataset.name
        return f"'{method.name}' needs symptoms and '{name}' has none; give --symptoms {name}=FILE"
    return None


def cell_key(
    protocol: Protocol,
    row: Row,
    hparams: HParams,
    data: LoadedDataset,
    backbone: ImageBackbone,
    shots: int | None,
    seed: int,
) -> str:
    """SHA-256 of everything that makes the cell's numbers, and of nothing else."""
    needs = row.method.needs
    texts = {}
    if needs & {"text", "symptoms"}:
        texts = {"templates": data.dataset.templates, "classes": data.dataset.class_names}
    content = {
        "engine": ENGINE_REVISION,
        "method": [row.method.name, row.method.revision, method_code(row.plugin)],
        "hparams": dataclasses.asdict(hparams),
        "backbone": backbone.fingerprint,
        "dataset": [data.fingerprint, sampling.REVISION],
        "texts": texts,
        "symptoms": data.symptoms_sha256 if "symptoms" in needs else None,
        "shots": shots,
        "seed": seed,
        "precision": protocol.precision,
    }
    if row.method.uses_support:
        content["protocol"] = [
            protocol.views, protocol.sampler, protocol.validation, protocol.selection
        ]  # fmt: skip
    return _sha(content)


def method_code(plugin: Plugin) -> str | None:
    """What stands for a method's code in a key: built-ins raise `revision` instead."""
    return None if plugin.builtin else plugin.file_sha256


def metric_revisions() -> dict[str, int]:
    """Metric -> revision, kept in records so that an old number is known as one."""
    return {name: metric.revision for name, metric in METRICS.items()}


def _check_splits(dataset: Dataset, splits: Mapping[str, Split]) -> None:
    names = dataset.class_names
    if len(set(names)) != len(names) or len(names) < 2:
        raise DataError(f"class names must be two or more, each once; got {list(names)}")
    for name in SPLITS:
        labels = splits[name].labels
        bad = [int(i) for i in ((labels < 0) | (labels >= len(names))).nonzero()[0][:1]]
        if bad:
            image = splits[name].ids[bad[0]]
            raise DataError(
                f"image '{image}' of split '{name}' has the label {labels[bad[0]]}; "
                f"expected 0 to {len(names) - 1} ({len(names)} classes)"
            )
    for name in ("train", "test"):
        for label, count in enumerate(splits[name].counts(len(names))):
            if count == 0:
                raise DataError(f"class '{names[label]}' has no image in split '{name}'")


def _sha(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
