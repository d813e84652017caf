"""From a RunSpec to cells: their keys, and which are impossible and why."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary

from vipbench import alive
from vipbench.api import Backbone, CellInfo, HParams, ImageBackbone, Method
from vipbench.engine.planning import sampling
from vipbench.engine.planning.hparams import make_hparams
from vipbench.engine.planning.loading import (
    TEXTS,
    Beside,
    LoadedBackbone,
    LoadedDataset,
    choices,
    reads,
    sha,
    users,
)
from vipbench.engine.planning.protocols import Part, Scene, draw, home, key_of
from vipbench.engine.planning.sampling import (
    Sampler,
    SamplingError,
    ShotsUnit,
    SupportIndices,
    Validation,
)
from vipbench.errors import UsageError
from vipbench.plugins.registry import Plugin, Registry
from vipbench.results.records.metrics import METRICS
from vipbench.results.records.record import CellId
from vipbench.revisions import (
    ENGINE_REVISION,
    FEATURE_REVISION,
    READER_REVISION,
    TEST_ORDER_REVISION,
    TEXT_REVISION,
    VIEW_REVISION,
)
from vipbench.runspec.run import MethodSpec, RunSpec
from vipbench.runspec.text_sets import row_label
from vipbench.runspec.values import FeaturePrecision

# Needs of methods whose scores depend on the seed, support set or none.
SEEDED = frozenset({"test_images", "test_views"})


@dataclass(frozen=True)
class Row:
    """A method with its hyperparameters, as one row of a table."""

    label: str
    method: type[Method]
    plugin: Plugin
    hparams: HParams
    note: str = ""

    def reads(self, kind: str) -> bool:
        """Whether the method reads "symptoms", "descriptions" or "templates"."""
        return reads(self.method.needs, kind)


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
    feature_precision: FeaturePrecision = "fp32"

    @classmethod
    def of(cls, spec: RunSpec, method: type[Method]) -> Protocol:
        """The run's protocol, or, under the profile `published`, that of the method's paper."""
        validation, selection = spec.validation, spec.selection
        if spec.profile == "published":
            validation = method.published.validation
            selection = method.published.selection
        if spec.protocol.name == "validation-free":
            validation, selection = "none", "last"
        # Methods on images encode none beforehand.
        features = spec.feature_precision if method.inputs == "features" else "fp32"
        given = (spec.precision, spec.shots_unit, spec.score_on, features)
        return cls(spec.views, spec.sampler, validation, selection, *given)


@dataclass(frozen=True)
class LoadedCell:
    """A planned cell with what it runs on, or the reason why it cannot run.

    id: as its record has it. data: what is trained on. towers: its backbone, then the method's
    further ones. parts: of what the key is made, see `key_parts`. part: what is tested, where that
    is not the test split of `data`. protocol_fields: for the record, none for few-shot.
    class_texts: what the method gives to the text tower for the first class.
    """

    key: str
    id: CellId
    row: Row
    data: LoadedDataset
    towers: tuple[LoadedBackbone, ...]
    hparams: HParams
    info: CellInfo
    protocol: Protocol
    notes: tuple[str, ...] = ()
    impossible: str | None = None
    support: SupportIndices | None = field(default=None, repr=False)
    parts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    part: Part | None = None
    protocol_fields: Mapping[str, Any] = field(default_factory=dict)
    class_texts: tuple[str, ...] = ()

    @property
    def backbone(self) -> LoadedBackbone:
        """Its backbone, as tables name it."""
        return self.towers[0]

    @property
    def further(self) -> tuple[LoadedBackbone, ...]:
        """The method's further backbones."""
        return self.towers[1:]

    @property
    def shots(self) -> int | None:
        """Images per class: None is the full training set, 0 a zero-shot cell."""
        return None if self.id.shots == "full" else self.id.shots

    @property
    def seed(self) -> int:
        """0 where the scores depend on none."""
        return self.id.seed

    @property
    def tested(self) -> LoadedDataset:
        """What is tested, named as tables name it."""
        return self.data if self.part is None else self.part.data

    @property
    def plugins(self) -> frozenset[Plugin]:
        """Those, of users, whose code the cell runs: of method, backbone and datasets."""
        return users(self.row, *self.towers, self.data, self.tested)

    @property
    def dims(self) -> tuple[int, ...]:
        """D of the backbone and of each further one."""
        return (self.info.dim, *(tower.backbone.dim for tower in self.further))

    @property
    def owner(self) -> Plugin:
        """Whom to name for a failure: the method's plugin, or the user's whose data or backbone a
        built-in method runs on."""
        own = self.row.plugin
        return min(self.plugins, key=lambda p: p.name, default=own) if own.builtin else own

    @property
    def rebound(self) -> bool:
        """Whether what is trained is bound to other classes before it is tested."""
        return self.part is not None and self.part.columns is None

    @property
    def place(self) -> tuple[str, str]:
        """The backbone and the dataset whose images are trained on."""
        return self.backbone.source, home(self.data)

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
    spec: RunSpec, row: Row, scene: Scene, backbone: LoadedBackbone, beside: Beside | None = None
) -> list[LoadedCell]:
    """All cells of one row in one scene and on one backbone; of a method that reads texts of which
    there are several sets, or that of several kinds of knowledge, those of each, labelled with it.
    beside: loads a method's further backbones."""
    plan = partial(_plan_cell, spec, backbone, beside or Beside(Registry(), [backbone]))
    kinds = spec.knowledge if "symptoms" in row.method.needs else ("symptoms",)
    data, found = scene.data, []
    for choice, kind in product(choices(data.sets, {*data.from_files}, row.method.needs), kinds):
        label = row_label(row.label, choice)
        label += "" if kind == "symptoms" else f" ({kind} knowledge)"
        named = dataclasses.replace(row, label=label)
        found += _plan_row(plan, spec, named, scene.with_texts(choice, kind))
    return found


def _plan_row(
    plan: Callable[..., LoadedCell], spec: RunSpec, row: Row, scene: Scene
) -> list[LoadedCell]:
    if row.method.uses_support:
        shots = [None if k == "full" else k for k in spec.shots]
        return [
            plan(row, scene, part, k, seed)
            for k in shots
            for seed in spec.seeds
            for part in scene.parts
        ]
    found = []
    seeds = spec.seeds if row.method.needs & SEEDED else (0,)
    for seed, part in product(seeds, scene.parts):
        if part is not None and part.columns is None:
            # Nothing is trained: what is tested is all that there is.
            own = Scene(part.data, protocol_fields=part.protocol_fields, reason=scene.reason)
            found.append(plan(row, own, None, 0, seed))
        else:
            found.append(plan(row, scene, part, 0, seed))
    return found


def _plan_cell(
    spec: RunSpec,
    backbone: LoadedBackbone,
    beside: Beside,
    row: Row,
    scene: Scene,
    part: Part | None,
    shots: int | None,
    seed: int,
) -> LoadedCell:
    alive.sign()
    data, protocol_fields = (
        scene.data,
        scene.protocol_fields if part is None else part.protocol_fields,
    )
    protocol = Protocol.of(spec, row.method)
    reason = scene.reason or impossible_pair(row.method, backbone.backbone, data)
    if reason is None and part is not None and part.columns is None:
        reason = impossible_pair(row.method, backbone.backbone, part.data)
    if reason is None and "val" in row.method.needs and protocol.validation == "none":
        reason = f"'{row.method.name}' needs validation images and the run has none"
    support = None
    names = data.dataset.class_names
    if shots != 0 and reason is None:
        try:
            how = (protocol.sampler, protocol.validation, protocol.shots_unit)
            support = draw(spec.protocol.name, data, shots, seed, *how)
        except SamplingError as error:
            reason = str(error)
    main = backbone.backbone
    info = CellInfo(
        shots=shots,
        n_support=0 if support is None else len(support.train),
        n_classes=len(names),
        backbone=main.name,
        dim=main.dim,
        width=main.width if isinstance(main, Backbone) else 0,
        dataset=home(data),
    )
    hparams = row.hparams.for_cell(info)
    notes = hparams.notes(info)
    if saw := data.texts_saw(row.method.needs):
        notes = (*notes, f"its texts were written from {saw} labelled training images per class")
    if "text" in row.method.needs and (
        numbered := (data if part is None else part.data).numbered()
    ):
        notes = (*notes, numbered)
    if spec.profile == "quick" and hparams != (quick := hparams.quick(info)):
        hparams, notes = quick, (*notes, "profile quick: unpublished settings")
    towers, refused = _further(row.method, hparams, beside)
    reason = reason or refused
    if towers:
        further = ", ".join(tower.backbone.name for tower in towers)
        notes = (*notes, f"reads features of {further} beside those of its backbone")
    if reason is None and "test_views" in row.method.needs:
        count = hparams.test_views().count
        if not count:
            reason = (
                f"'{row.method.name}' needs test views and its HParams.test_views() gives the "
                f"count {count}; it must be 1 or more"
            )
        notes = (*notes, f"scored on {count} views of each test image beside the evaluation view")
    if spec.score_on != "test":
        notes = (
            *notes,
            f"scored on {len(data.splits['test'])} validation images, none of the test split",
        )
    if row.note:
        notes = (*notes, row.note)
    parts = key_parts(protocol, row, hparams, data, backbone.backbone, shots, seed)
    if towers:
        parts["backbones"] = [tower.backbone.fingerprint for tower in towers]
    if protocol_fields:
        parts["protocol"] = key_of(protocol_fields)
    if part is not None:
        parts["tested"] = part.key(row.method.needs)
        notes = (*notes, *part.notes)
    tested = data if part is None else part.data
    cell_id = CellId(
        backbone=backbone.name,
        dataset=tested.dataset.name,
        method=row.label,
        method_name=row.method.name,
        shots="full" if shots is None else shots,
        seed=seed,
    )
    return LoadedCell(
        key=sha(parts),
        id=cell_id,
        row=row,
        data=data,
        towers=(backbone, *towers),
        hparams=hparams,
        info=info,
        protocol=protocol,
        notes=notes,
        impossible=reason,
        support=support,
        parts=parts,
        part=part,
        protocol_fields=protocol_fields,
    )


def _further(
    method: type[Method], hparams: HParams, beside: Beside
) -> tuple[tuple[LoadedBackbone, ...], str | None]:
    """The method's further backbones, and why it cannot have them, or None."""
    names = hparams.backbones()
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        given = f"HParams.backbones() of '{method.name}' gives {names!r}"
        return (), f"{given}; expected a tuple of names, such as ('tiny-clip',)"
    if names and method.inputs == "images":
        given = f"'{method.name}' takes images and asks for further backbones ({', '.join(names)})"
        return (), f'{given}; their features come with inputs = "features"'
    try:
        return tuple(beside.load(name) for name in names), None
    except UsageError as error:
        return (), f"'{method.name}' reads features of further backbones, and {error}"


def impossible_pair(
    method: type[Method], backbone: ImageBackbone, data: LoadedDataset
) -> str | None:
    """Why this method cannot run there, or None."""
    needs = method.needs
    if needs & TEXTS and not isinstance(backbone, Backbone):
        return f"'{method.name}' needs a text tower and '{backbone.name}' has none"
    if isinstance(backbone, Backbone) and needs & TEXTS and (same := _same_texts(backbone, data)):
        return f"'{method.name}' reads texts, and {same}"
    if "vit" in needs and not backbone.vision_layers:
        return f"'{method.name}' needs a vision transformer and '{backbone.name}' is not one"
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


def _texts_of(data: LoadedDataset) -> tuple[tuple[str, ...], str]:
    """Class names as texts hold them, and the template of single-template methods."""
    names = tuple(name.replace("_", " ") for name in data.dataset.class_names)
    return names, data.dataset.templates[0]


# Asked for every cell, and the same for all of one table.
_same: Any = WeakIdKeyDictionary()


def _same_texts(backbone: Backbone, data: LoadedDataset) -> str:
    """Why the text tower cannot tell the classes apart; "" where it can."""
    asked, kept = _texts_of(data), _same.setdefault(backbone, {})
    if asked not in kept:
        kept[asked] = _compare_texts(backbone, *asked)
    found: str = kept[asked]
    return found


def _compare_texts(backbone: Backbone, names: tuple[str, ...], template: str) -> str:
    for name in names:
        if len(backbone.unknown_words(name)) == len(re.findall(r"\w+", name)) > 0:
            return f"the tokenizer of '{backbone.name}' has no token for class '{name}'"
    seen: dict[tuple[int, ...], str] = {}
    for name in names:
        try:
            prompts = backbone.embed(template.replace("{}", name))
        except Exception:  # too long, say: building a method that reads this text tells the user
            continue
        tokens = tuple(prompts.tokens[: int(prompts.lengths)].tolist())
        if tokens in seen:
            return (
                f"the tokenizer of '{backbone.name}' makes the same tokens of the classes "
                f"'{seen[tokens]}' and '{name}'"
            )
        seen[tokens] = name
    return ""


def unread(backbone: ImageBackbone, data: LoadedDataset) -> list[str]:
    """Lines for the user: the words of class names that the text tower has no tokens for."""
    names, _ = _texts_of(data)
    words = [backbone.unknown_words(n) for n in names] if isinstance(backbone, Backbone) else []
    lacking = list(dict.fromkeys(word for some in words for word in some))
    if not lacking:
        return []
    return [
        f"{backbone.name}: its tokenizer has no tokens for {', '.join(map(repr, lacking))} in the "
        f"class names of '{data.dataset.name}'; it cannot distinguish such words"
    ]


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
    itself counts. Metrics do not: they are computed anew from the scores that are kept.
    """
    method, needs = row.method, row.method.needs
    parts: dict[str, Any] = {
        "engine.revision": ENGINE_REVISION,
        "reader.revision": READER_REVISION,
        "features.revision": FEATURE_REVISION,
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
    if protocol.feature_precision != "fp32":
        parts["feature_precision"] = protocol.feature_precision
    if needs & TEXTS:
        parts["text.revision"] = TEXT_REVISION
        parts["texts"] = sha([data.dataset.class_names, data.dataset.templates])
    if "symptoms" in needs:
        parts["symptoms"] = data.symptoms_sha256
    if "descriptions" in needs:
        parts["descriptions"] = sha(data.descriptions)
    if "test_images" in needs:
        parts["test_order.revision"] = TEST_ORDER_REVISION
    if "test_views" in needs:
        views = dataclasses.asdict(hparams.test_views())
        parts["test_views"] = {k: _plain(v) for k, v in views.items()}
        parts["views.revision"] = VIEW_REVISION
    if method.uses_support:
        parts["sampler.revision"] = sampling.REVISION
        parts["views.revision"] = VIEW_REVISION
        for name in ("views", "sampler", "validation", "selection", "shots_unit"):
            parts[name] = getattr(protocol, name)
    return parts


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def metric_revisions() -> dict[str, int]:
    """Metric -> revision, kept in records so that an old number is known as one."""
    return {name: metric.revision for name, metric in METRICS.items()}


_VALIDATION = {
    "none": "no validation image",
    "k": "k validation images per class for k shots",
    "min(k,4)": "min(k,4) validation images per class for k shots",
    "full": "the whole validation split",
}

_SELECTION = {
    "last": "the last step is scored",
    "best_val": "the epoch that is best on validation is scored",
}


def profile_note(spec: RunSpec, cell: LoadedCell) -> str:
    """A footnote for the cell's row; "" where the profile gives none a protocol of its own.

    It belongs to the run, not to the record: the same record may stand in a table of one protocol
    for all rows.
    """
    if spec.profile != "published" or not cell.row.method.uses_support:
        return ""
    settings = f"{_VALIDATION[cell.protocol.validation]}, {_SELECTION[cell.protocol.selection]}"
    views = "" if spec.views == "per-epoch" else f"; training views are the run's ({spec.views})"
    return f"as in its paper (profile published): {settings}{views}"
