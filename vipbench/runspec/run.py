"""What one run is: the grid of methods, datasets, backbones, shots and seeds, and its protocol.

The command line's flags and a YAML suite describe the same `RunSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vipbench.errors import UsageError, unknown
from vipbench.files import write
from vipbench.runspec import places, text_sets
from vipbench.runspec import values as specmachine
from vipbench.runspec import values as words
from vipbench.runspec.errors import usage_error
from vipbench.runspec.executor import ExecutorSpec, executor_of
from vipbench.runspec.methods import MethodSpec as MethodSpec
from vipbench.runspec.methods import methods_of, with_settings
from vipbench.runspec.outputs import FigureOutput, TableOutput, figure_outputs, table_outputs
from vipbench.runspec.protocol import ProtocolSpec, check_together, protocol_of
from vipbench.runspec.text_sets import set_flags, split_key, texts_by_set
from vipbench.runspec.values import dataset_keys, path_flags, paths_by_dataset
from vipbench.runspec.yaml import Document, dump_yaml, parse_yaml, read_yaml

Shots: TypeAlias = int | Literal["full"]

METHODS = ("zero-shot", "symptoms-mean", "symptoms-max", "linear-probe", "coop", "cocoop", "vip")
DATASETS = ("synthderm",)
TINY, REAL = "tiny-clip", "openclip:ViT-B-16/openai"
SUITE_NAME = "suite.yaml"
TEXT_FILES = ("symptoms", "descriptions", "templates")
PATHS_BY_DATASET = (*TEXT_FILES, "images")
KNOWLEDGE = ("symptoms", "out-of-domain", "useless", "incorrect")  # see vipbench.symptoms.knowledge


def _knowledge(value: Any) -> tuple[str, ...]:
    found = words.once(map(str, words.items(value, f"some of {', '.join(KNOWLEDGE)}")))
    for name in found:
        if name not in KNOWLEDGE:
            raise unknown("knowledge", name, KNOWLEDGE)
    return found


def _trackers(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and not value:
        return ()
    names = words.once(map(str, words.items(value, "trackers such as tensorboard")))
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UsageError(
                f"track: '{name}' is not a valid name; expected one such as tensorboard"
            )
    return names


class RunSpec(BaseModel):
    """The whole of a run. Each field is a suite's key, and a flag with `-` for `_`.

    methods, datasets, backbones, shots, seeds: the grid. A dataset or backbone is `NAME` or
        `NAME:ARG`, kept as given; a backbone also `LABEL=NAME:ARG`, which tables show as LABEL.
        shots: images per class, or "full" for the training split.
    data_root: the folder where datasets are looked for. symptoms: dataset -> symptom file; the
        key "*" is every dataset. A key that is no dataset is the label of a row of its own.
        descriptions, templates: the same for texts that hold the class name, and for templates.
        images: dataset -> the folder below which the image files of a table, a split file or a
        folder of links lie, beside the data's own.
        knowledge: texts that replace the symptoms, one row each
        for methods that read symptoms. out: the results folder. plugins_dir: single-file plugins.
    device: "auto", "cpu", "cuda", "mps", "xpu", or CUDA devices such as "cuda:0,cuda:1".
    workers: processes that run groups of cells at once; None is one for each CUDA device, or one.
    protocol: what is trained, and on what it is tested; see `ProtocolSpec`.
    precision: of the text tower in training. feature_precision: of image features, which methods on
        features read.
    views: training views of the support images: "per-epoch", how many, or "none".
    sampler: how support sets are drawn. validation: validation images per class, in terms of the
        shots k. selection: which epoch is scored. profile: one protocol for every row, each
        paper's own validation and selection, or cheap settings. shots_unit: whether shots count
        images or groups (patients, lesions). allow_group_overlap: run although splits share
        groups. cell_timeout: seconds a cell may take. tables, figures: what else the run leaves in
        its folder: presets of `vipbench table`, kinds of `vipbench plot`. track: trackers that
        receive each cell, see docs/tracking.md. executor: who computes
        its parts where that is not this machine; see `ExecutorSpec`.
    Paths of a suite file are relative to its folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: Annotated[tuple[MethodSpec, ...], BeforeValidator(methods_of)] = Field(
        default_factory=lambda: tuple(MethodSpec(name=name) for name in METHODS)
    )
    datasets: Annotated[tuple[str, ...], BeforeValidator(words.names)] = DATASETS
    backbones: Annotated[tuple[str, ...], BeforeValidator(words.backbones)] = Field(
        default_factory=lambda known: (TINY if known.get("datasets") == DATASETS else REAL,)
    )
    protocol: Annotated[ProtocolSpec, BeforeValidator(protocol_of)] = ProtocolSpec()
    shots: Annotated[tuple[Shots, ...], BeforeValidator(words.shots)] = Field(
        default_factory=lambda known: known["protocol"].default_shots
    )
    seeds: Annotated[tuple[int, ...], BeforeValidator(words.seeds)] = (1, 2, 3)
    data_root: Annotated[Path | None, BeforeValidator(words.path)] = None
    symptoms: Annotated[dict[str, Path], BeforeValidator(texts_by_set)] = {}
    descriptions: Annotated[dict[str, Path], BeforeValidator(texts_by_set)] = {}
    templates: Annotated[dict[str, Path], BeforeValidator(texts_by_set)] = {}
    images: Annotated[dict[str, Path], BeforeValidator(paths_by_dataset)] = {}
    knowledge: Annotated[tuple[str, ...], BeforeValidator(_knowledge)] = ("symptoms",)
    out: Annotated[Path, BeforeValidator(words.required_path)] = Path("vipbench-results")
    plugins_dir: Annotated[Path | None, BeforeValidator(words.path)] = None
    device: Annotated[str, BeforeValidator(specmachine.device)] = "auto"
    workers: Annotated[int | None, BeforeValidator(specmachine.workers)] = None
    precision: Literal["fp32", "bf16"] = "fp32"
    feature_precision: words.FeaturePrecision = "fp32"
    views: Annotated[int | Literal["per-epoch", "none"], BeforeValidator(words.views)] = "per-epoch"
    sampler: Literal["nested", "coop"] = "nested"
    validation: Literal["none", "k", "min(k,4)", "full"] = Field(
        default_factory=lambda known: known["protocol"].default_validation
    )
    selection: Literal["last", "best_val"] = "last"
    score_on: Literal["test", "val:k", "val:min(k,4)", "val:full"] = "test"
    profile: Literal["matched", "published", "quick"] = "matched"
    shots_unit: Literal["image", "group"] = "image"
    allow_group_overlap: Annotated[bool, Field(strict=True)] = False
    cell_timeout: Annotated[float, BeforeValidator(words.seconds)] = 3600.0
    title: Annotated[str | None, BeforeValidator(words.title)] = None
    tables: Annotated[tuple[TableOutput, ...], BeforeValidator(table_outputs)] = ()
    figures: Annotated[tuple[FigureOutput, ...], BeforeValidator(figure_outputs)] = ()
    track: Annotated[tuple[str, ...], BeforeValidator(_trackers)] = ()
    executor: Annotated[ExecutorSpec | None, BeforeValidator(executor_of)] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        check_together(self.protocol, self)
        if self.selection == "best_val" and self.validation == "none":
            raise UsageError(
                "selection: 'best_val' needs validation images, and validation is 'none'; "
                "give validation 'min(k,4)', 'k' or 'full', or selection 'last'"
            )
        if self.score_on in ("val:k", "val:min(k,4)") and len(self.shots) > 1:
            raise UsageError(
                f"score_on: '{self.score_on}' means the same images for a whole run, so it "
                f"requires a single number of shots; got {len(self.shots)}"
            )
        for name in PATHS_BY_DATASET:
            for _, dataset in map(split_key, getattr(self, name)):
                if dataset not in dataset_keys(self.datasets):
                    what = "folder" if name == "images" else "file"
                    raise UsageError(
                        f"{name}: a {what} is given for '{dataset}', which is not among the "
                        f"datasets {', '.join(self.datasets)}"
                    )
        return self

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], source: str = "", document: Document | None = None
    ) -> Self:
        """A RunSpec from plain values. UsageError names the key and, where a `document` is given,
        `source` and line; without one the key is named as a flag."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise usage_error(error, cls.model_fields, source, document) from None

    @classmethod
    def from_yaml(cls, path: Path | str) -> Self:
        """The suite file `path`; its relative paths start at its folder. Raises UsageError."""
        path = Path(path)
        return cls._from_document(read_yaml(path, "suite"), f"suite '{path}'", path.parent)

    @classmethod
    def from_yaml_text(cls, text: str, source: str = "suite", folder: Path = Path()) -> Self:
        """A suite's text; relative paths start at `folder`. Raises UsageError."""
        return cls._from_document(parse_yaml(text, source), source, folder)

    @classmethod
    def _from_document(cls, document: Document, source: str, folder: Path) -> Self:
        values = document.value
        if not isinstance(values, dict):
            raise UsageError(
                f"{source} holds {words.show(values)}; expected keys and values such as "
                "'methods: [zero-shot, vip]'"
            )
        for key in values:
            if not isinstance(key, str):
                raise UsageError(f"{source}: the key {key!r} is not text; put it in quotes")
        spec = cls.parse(values, source, document)
        based: dict[str, Any] = {}
        for key in {"data_root", "out", "plugins_dir"} & spec.model_fields_set:
            if getattr(spec, key) is not None:
                based[key] = folder / getattr(spec, key)
        for key in PATHS_BY_DATASET:
            if getattr(spec, key):
                based[key] = {name: folder / file for name, file in getattr(spec, key).items()}
        found = places.from_folder(spec.datasets, folder)
        return spec.model_copy(update=based).with_sources(found)

    def with_sources(self, names: Mapping[str, str]) -> Self:
        """This with other sources for its datasets: old source -> new one."""
        if all(old == new for old, new in names.items()):
            return self
        protocol = self.protocol.model_copy(
            update={
                "source": names.get(self.protocol.source or "", self.protocol.source),
                "classes": {names.get(k, k): v for k, v in self.protocol.classes.items()},
            }
        )
        update: dict[str, Any] = {"datasets": tuple(names[d] for d in self.datasets)}
        update |= {"protocol": protocol} if protocol != self.protocol else {}
        for key in PATHS_BY_DATASET:
            if values := getattr(self, key):
                update[key] = {
                    text_sets.key(label, names.get(name, name)): file
                    for (label, name), file in zip(
                        map(split_key, values), values.values(), strict=True
                    )
                }
        return self.model_copy(update=update)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Kind of texts -> labels under which several sets of it are given."""
        found = {kind: text_sets.labels(getattr(self, kind)) for kind in TEXT_FILES}
        return {kind: labels for kind, labels in found.items() if labels}

    def as_values(self) -> dict[str, Any]:
        """The keys and plain values that a suite has for all of this; `parse` reads them back."""
        values = {key: getattr(self, key) for key in type(self).model_fields}
        for key in ("methods", "tables", "figures"):
            values[key] = [one.as_yaml() for one in values[key]]
        values["protocol"] = self.protocol.as_yaml()
        values["executor"] = None if self.executor is None else self.executor.as_yaml()
        for key in PATHS_BY_DATASET:
            values[key] = text_sets.as_values(values[key])
        for key, value in values.items():
            if isinstance(value, Path | tuple):
                values[key] = str(value) if isinstance(value, Path) else list(value)
        first = {"title": values.pop("title")}
        return {k: v for k, v in (first | values).items() if v not in (None, {}, [])}

    def to_yaml(self) -> str:
        """The suite that says all of this; `from_yaml_text` reads it back."""
        return dump_yaml(self.as_values())

    def save(self, folder: Path | None = None) -> Path:
        """Write `suite.yaml` into `folder` (by default `out`, made where it is missing), so that
        `--suite FOLDER/suite.yaml` resumes this run from any working directory; returns its path.
        Paths in it are absolute, those below `folder` relative to it."""
        folder = folder or self.out
        folder.mkdir(parents=True, exist_ok=True)
        update: dict[str, Any] = {}
        for key in ("data_root", "plugins_dir"):
            if getattr(self, key) is not None:
                update[key] = places.inside(folder, getattr(self, key))
        for key in PATHS_BY_DATASET:
            files = getattr(self, key).items()
            update[key] = {name: places.inside(folder, file) for name, file in files}
        update["backbones"] = tuple(map(places.absolute_backbone, self.backbones))
        update["out"] = places.inside(folder, self.out)
        found = places.to_folder(self.datasets, folder, self.data_root)
        file = folder / SUITE_NAME
        write(file, self.model_copy(update=update).with_sources(found).to_yaml())
        return file

    def merge(self, flags: Mapping[str, Any], settings: Sequence[str] = ()) -> Self:
        """This suite with `flags` (field -> value as on the command line; None = not given) and
        `settings` ("method.hparam=value", for every entry of that method). Raises UsageError."""
        values: dict[str, Any] = {key: getattr(self, key) for key in self.model_fields_set}
        given = {key: value for key, value in flags.items() if value is not None}
        files = {key: values.pop(key, {}) for key in PATHS_BY_DATASET}
        more = {key: given.pop(key, ()) for key in PATHS_BY_DATASET}
        spec = type(self).parse({**values, **given})
        keys, update = dataset_keys(spec.datasets), dict[str, Any]()
        for key in PATHS_BY_DATASET:
            # A suite's path for a dataset that the flags took out of the run is dropped.
            found = {k: file for k, file in files[key].items() if split_key(k)[1] in keys}
            read = path_flags if key == "images" else set_flags
            found |= read(more[key], spec.datasets, f"--{key}")
            if found:
                update[key] = found
        if settings:
            update["methods"] = with_settings(spec.methods, settings)
        kept = {key: getattr(spec, key) for key in spec.model_fields_set}
        return type(self).parse({**kept, **update})


def demo_suite() -> RunSpec:
    """The bundled demo."""
    text = resources.files("vipbench").joinpath("suites", "demo.yaml").read_text(encoding="utf-8")
    return RunSpec.from_yaml_text(text, "the bundled demo suite")
