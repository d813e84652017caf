"""From a RunSpec to cells: what there is to run, under which key, and what cannot be and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vipbench.api import Backbone, CellInfo, HParams, ImageBackbone, Method
from vipbench.engine import sampling
from vipbench.engine.hparams import make_hparams
from vipbench.engine.loading import LoadedBackbone, LoadedDataset, sha
from vipbench.engine.sampling import (
    Sampler,
    SamplingError,
    ShotsUnit,
    SupportIndices,
    Validation,
    draw_support,
)
from vipbench.plugins import Plugin, Registry
from vipbench.results.metrics import METRICS
from vipbench.spec import MethodSpec, RunSpec

# Part of every key: raise it when the engine's own numbers change (batch orders, views, scoring).
ENGINE_REVISION = 1
# Needs that a text tower meets.
TEXTS = frozenset({"text", "symptoms", "descriptions"})


@dataclass(frozen=True)
class Row:
    """A method with its hyperparameters, as one row of a table."""

    label: str
    method: type[Method]
    plugin: Plugin
    hparams: HParams
    note: str = ""


@dataclass(frozen=True)
class Protocol:
    """How one cell is run, whichever method it is; see RunSpec for the words."""

    views: int | str
    sampler: Sampler
    validation: Validation
    selection: str
    precision: str
    shots_unit: ShotsUnit
    score_on: str = "test"

    @classmethod
    def of(cls, spec: RunSpec, method: type[Method]) -> Protocol:
        """The run's protocol, or, under the profile `published`, that of the method's paper."""
        validation, selection = spec.validation, spec.selection
        if spec.profile == "published":
            validation = method.published.validation
            selection = method.published.selection
        return cls(
            spec.views, spec.sampler, validation, selection, spec.precision, spec.shots_unit,
            spec.score_on,
        )  # fmt: skip


@dataclass(frozen=True)
class PlanCell:
    """One number in a table, or the reason why it cannot be.

    shots: None is the full training set, 0 with seed 0 a zero-shot cell. parts: of what the key is
    made, see `key_parts`.
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
    parts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def group(self) -> tuple[str, str, str]:
        """Cells of one group can be trained as one."""
        return self.backbone.source, self.data.dataset.name, self.row.label


def make_rows(registry: Registry, specs: tuple[MethodSpec, ...]) -> list[Row]:
    """The table's rows; raises UsageError for unknown methods and hyperparameters."""
    rows = []
    for spec in specs:
        method, plugin = registry.method(spec.name)
        hparams = make_hparams(method, spec.hparams)
        rows.append(Row(spec.label, method, plugin, hparams, spec.note))
    return rows


def plan_cells(
    spec: RunSpec, row: Row, data: LoadedDataset, backbone: LoadedBackbone
) -> list[PlanCell]:
    """All cells of one row on one dataset and backbone; of a method that reads symptoms, those of
    every kind of knowledge, labelled with it."""
    if "symptoms" not in row.method.needs:
        return _plan_row(spec, row, data, backbone)
    found = []
    for kind in spec.knowledge:
        label = row.label if kind == "symptoms" else f"{row.label} ({kind} knowledge)"
        named = dataclasses.replace(row, label=label)
        found += _plan_row(spec, named, data.with_knowledge(kind), backbone)
    return found


def _plan_row(
    spec: RunSpec, row: Row, data: LoadedDataset, backbone: LoadedBackbone
) -> list[PlanCell]:
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
                protocol.sampler, protocol.validation, data.fingerprint, protocol.shots_unit,
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
    notes = hparams.notes(info)
    if saw := data.texts_saw(row.method.needs):
        notes = (*notes, f"its texts were written from {saw} labelled training images a class")
    if spec.profile == "quick" and hparams != (quick := hparams.quick(info)):
        hparams, notes = quick, (*notes, "profile quick: unpublished settings")
    if spec.score_on != "test":
        notes = (
            *notes,
            f"scored on {len(data.splits['test'])} validation images, none of the test split",
        )
    if row.note:
        notes = (*notes, row.note)
    parts = key_parts(protocol, row, hparams, data, towers, shots, seed)
    return PlanCell(
        sha(parts), row, data, backbone, shots, seed, hparams, info, protocol, notes, reason,
        support, parts,
    )  # fmt: skip


def impossible_pair(
    method: type[Method], backbone: ImageBackbone, data: LoadedDataset
) -> str | None:
    """Why this method cannot run there, or None."""
    needs = method.needs
    if needs & TEXTS and not isinstance(backbone, Backbone):
        return f"'{method.name}' needs a text tower and '{backbone.name}' has none"
    if "vit" in needs and not backbone.vision_layers:
        return f"'{method.name}' needs a vision transformer and '{backbone.name}' is none"
    if "symptoms" in needs and data.symptoms is None:
        name = data.dataset.name
        return f"'{method.name}' needs symptoms and '{name}' has none; give --symptoms {name}=FILE"
    if "descriptions" in needs and data.descriptions is None:
        name = data.dataset.name
        return (
            f"'{method.name}' needs descriptions and '{name}' has none; give --descriptions "
            f"{name}=FILE"
        )
    return None


def key_parts(
    protocol: Protocol,
    row: Row,
    hparams: HParams,
    data: LoadedDataset,
    backbone: ImageBackbone,
    shots: int | None,
    seed: int,
) -> dict[str, Any]:
    """Everything that makes the cell's numbers, and nothing else: a cell's key is the SHA-256 of
    this, and its record keeps it, so that a later run can say what changed.

    Built-in methods raise `revision` when their numbers change; of a user's plugin the code
    itself counts. A metric is named from its second revision on, so that a new metric changes
    no key.
    """
    method, needs = row.method, row.method.needs
    parts: dict[str, Any] = {
        "engine.revision": ENGINE_REVISION,
        "method": method.name,
        "method.revision": method.revision,
        "method.code": None if row.plugin.builtin else row.plugin.code_sha256,
        "hparams": {k: _plain(v) for k, v in dataclasses.asdict(hparams).items()},
        "backbone": backbone.fingerprint,
        "data": data.fingerprint,
        "loader.revision": data.dataset.revision,
        "shots": "full" if shots is None else shots,
        "seed": seed,
        "precision": protocol.precision,
    }
    if needs & TEXTS:
        parts["texts"] = sha([data.dataset.class_names, data.dataset.templates])
    if "symptoms" in needs:
        parts["symptoms"] = data.symptoms_sha256
    if "descriptions" in needs:
        parts["descriptions"] = sha(data.descriptions)
    if method.uses_support:
        parts["sampler.revision"] = sampling.REVISION
        for name in ("views", "sampler", "validation", "selection", "shots_unit"):
            parts[name] = getattr(protocol, name)
    changed = {name: r for name, r in metric_revisions().items() if r != 1}
    if changed:
        parts["metrics"] = changed
    return parts


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def metric_revisions() -> dict[str, int]:
    """Metric -> revision, kept in records so that an old number is known as one."""
    return {name: metric.revision for name, metric in METRICS.items()}
