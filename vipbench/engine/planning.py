"""From a RunSpec to cells: what there is to run, under which key, and what cannot be and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Protocol:
    """How one cell is run, whichever method it is; see RunSpec for the words."""

    views: int | str
    sampler: Sampler
    validation: Validation
    selection: str
    precision: str
    shots_unit: ShotsUnit

    @classmethod
    def of(cls, spec: RunSpec, method: type[Method]) -> Protocol:
        """The run's protocol, or, under the profile `published`, that of the method's paper."""
        validation, selection = spec.validation, spec.selection
        if spec.profile == "published":
            validation = method.published.validation
            selection = method.published.selection
        return cls(spec.views, spec.sampler, validation, selection, spec.precision, spec.shots_unit)


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
    if spec.profile == "quick" and hparams != (quick := hparams.quick(info)):
        hparams, notes = quick, (*notes, "profile quick: unpublished settings")
    key = cell_key(protocol, row, hparams, data, towers, shots, seed)
    return PlanCell(
        key, row, data, backbone, shots, seed, hparams, info, protocol, notes, reason, support
    )


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
        return f"'{method.name}' needs descriptions and '{data.dataset.name}' has none"
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
    if needs & TEXTS:
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
    if "descriptions" in needs:
        content["descriptions"] = data.descriptions
    if row.method.uses_support:
        content["protocol"] = [
            protocol.views, protocol.sampler, protocol.validation, protocol.selection,
            protocol.shots_unit,
        ]  # fmt: skip
    return sha(content)


def method_code(plugin: Plugin) -> str | None:
    """What stands for a method's code in a key: built-ins raise `revision` instead."""
    return None if plugin.builtin else plugin.file_sha256


def metric_revisions() -> dict[str, int]:
    """Metric -> revision, kept in records so that an old number is known as one."""
    return {name: metric.revision for name, metric in METRICS.items()}
