"""What one run is: the grid of methods, datasets, backbones, shots and seeds, and its protocol.

The command line's flags and a YAML suite describe the same `RunSpec`. No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vipbench import specparse as words
from vipbench.errors import UsageError, unknown
from vipbench.specerrors import PlacedError, sentence, usage_error
from vipbench.yamlio import Document, Scalar, dump_yaml, parse_yaml, read_yaml

Shots: TypeAlias = int | Literal["full"]

METHODS = ("zero-shot", "symptoms-mean", "symptoms-max", "linear-probe", "coop", "cocoop", "vip")
DATASETS = ("synthderm",)
TINY, REAL = "tiny-clip", "openclip:ViT-B-16/openai"
SUITE_NAME = "suite.yaml"
KNOWLEDGE = ("symptoms", "out-of-domain", "useless", "incorrect")  # see vipbench.symptoms.knowledge


class MethodSpec(BaseModel):
    """One row of the table: a method, its hyperparameters where they are not the paper's.

    name: the registered name. hparams: hyperparameter -> value. label: what the table shows;
    by default `name`, or `name[hparam=value,...]` where hyperparameters are given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, BeforeValidator(words.word)]
    hparams: Annotated[dict[str, Scalar], BeforeValidator(words.hparams)] = {}
    label: Annotated[str, BeforeValidator(words.label)] = Field(
        default_factory=lambda got: words.default_label(got["name"], got["hparams"])
    )

    @property
    def plain(self) -> str:
        """`name` or `name[hparam=value,...]`: the default label, and how a flag gives it."""
        return words.default_label(self.name, self.hparams)

    @property
    def own_label(self) -> bool:
        """Whether the label says something else than the default one."""
        return self.label != self.plain

    def with_hparams(self, changes: Mapping[str, Scalar]) -> MethodSpec:
        """This method with `changes`, and a label that says so: results of the two never mix."""
        label = {"label": words.default_label(self.label, changes)} if self.own_label else {}
        return MethodSpec(name=self.name, hparams={**self.hparams, **changes}, **label)

    def as_yaml(self) -> str | dict[str, Scalar]:
        """The entry of a suite file that reads back as this."""
        if not self.hparams and not self.own_label:
            return self.name
        return {
            "name": self.name,
            **({"label": self.label} if self.own_label else {}),
            **self.hparams,
        }


def _methods(value: Any) -> tuple[MethodSpec, ...]:
    """`a,b[hparam=value]`, or a list of such texts and of `{name, label, hparam: value}`."""
    found: list[MethodSpec] = []
    for i, item in enumerate(words.items(value, "methods such as coop,vip[context=off]")):
        try:
            found.extend(_entry(item))
        except ValidationError as error:
            inner = error.errors(include_url=False)[0]
            raise PlacedError(sentence(inner, {}, f"method {i + 1}: "), (i,)) from None
        except UsageError as error:
            raise PlacedError(f"method {i + 1}: {error}", (i,)) from None
    by_label = {method.label: method for method in reversed(found)}
    for method in found:
        if by_label[method.label] is not method:
            raise UsageError(f"two methods are labelled '{method.label}'; give each its own label")
    words.once(found, lambda m: words.default_label(m.name, dict(sorted(m.hparams.items()))))
    return tuple(found)


def _entry(item: Any) -> list[MethodSpec]:
    if isinstance(item, MethodSpec):
        return [item]
    if isinstance(item, str):
        texts = [words.method_text(part) for part in words.items(item, "a method")]
        return [MethodSpec(name=name, hparams=hparams) for name, hparams in texts]
    if not isinstance(item, Mapping):
        raise UsageError(f"expected a name or keys such as 'name: vip', got {words.show(item)}")
    if "name" not in item:
        raise UsageError(f"a method's entry needs 'name', got {words.show(dict(item))}")
    hparams = {key: value for key, value in item.items() if key not in words.RESERVED}
    hparams |= words.hparams(item.get("hparams", {}))
    lists = {key: value for key, value in hparams.items() if isinstance(value, list)}
    found = []
    for chosen in itertools.product(*lists.values()):
        varied = dict(zip(lists, chosen, strict=True))
        label = {"label": item["label"]} if "label" in item else {}
        if label and varied:
            label["label"] = words.default_label(words.label(item["label"]), varied)
        found.append(MethodSpec(name=item["name"], hparams={**hparams, **varied}, **label))
    if not found:
        raise UsageError("a list of values is empty")
    return found


def _knowledge(value: Any) -> tuple[str, ...]:
    found = words.once(map(str, words.items(value, f"some of {', '.join(KNOWLEDGE)}")))
    for name in found:
        if name not in KNOWLEDGE:
            raise unknown("knowledge", name, KNOWLEDGE)
    return found


class RunSpec(BaseModel):
    """The whole of a run. Each field is a suite's key, and a flag with `-` for `_`.

    methods, datasets, backbones, shots, seeds: the grid. A dataset or backbone is `NAME` or
        `NAME:ARG`, kept as given. shots: images a class, or "full" for the training split.
    data_root: the folder where datasets are looked for. symptoms: dataset -> symptom file; the
        key "*" is every dataset. knowledge: what stands in the symptoms' place, a row each
        for methods that read symptoms. out: the results folder. plugins_dir: single-file plugins.
    views: training views of the support images: "per-epoch", how many, or "none".
    sampler: how support sets are drawn. validation: validation images a class, in terms of the
        shots k. selection: which epoch is scored. profile: one protocol for every row, each
        paper's own validation and selection, or cheap settings. shots_unit: whether shots count
        images or groups (patients, lesions). allow_group_overlap: run although splits share
        groups. cell_timeout: seconds a cell may take.
    Paths of a suite file are relative to its folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: Annotated[tuple[MethodSpec, ...], BeforeValidator(_methods)] = Field(
        default_factory=lambda: tuple(MethodSpec(name=name) for name in METHODS)
    )
    datasets: Annotated[tuple[str, ...], BeforeValidator(words.names)] = DATASETS
    backbones: Annotated[tuple[str, ...], BeforeValidator(words.names)] = Field(
        default_factory=lambda known: (TINY if known.get("datasets") == DATASETS else REAL,)
    )
    shots: Annotated[tuple[Shots, ...], BeforeValidator(words.shots)] = (1, 2, 4, 8, 16)
    seeds: Annotated[tuple[int, ...], BeforeValidator(words.seeds)] = (1, 2, 3)
    data_root: Annotated[Path | None, BeforeValidator(words.path)] = None
    symptoms: Annotated[dict[str, Path], BeforeValidator(words.symptoms)] = {}
    knowledge: Annotated[tuple[str, ...], BeforeValidator(_knowledge)] = ("symptoms",)
    out: Annotated[Path, BeforeValidator(words.required_path)] = Path("vipbench-results")
    plugins_dir: Annotated[Path | None, BeforeValidator(words.path)] = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    views: Annotated[int | Literal["per-epoch", "none"], BeforeValidator(words.views)] = "per-epoch"
    sampler: Literal["nested", "coop"] = "nested"
    validation: Literal["none", "k", "min(k,4)", "full"] = "min(k,4)"
    selection: Literal["last", "best_val"] = "last"
    profile: Literal["matched", "published", "quick"] = "matched"
    shots_unit: Literal["image", "group"] = "image"
    allow_group_overlap: Annotated[bool, Field(strict=True)] = False
    cell_timeout: Annotated[float, BeforeValidator(words.seconds)] = 3600.0
    title: Annotated[str | None, BeforeValidator(words.title)] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.selection == "best_val" and self.validation == "none":
            raise UsageError(
                "selection: 'best_val' needs validation images, and validation is 'none'; "
                "give validation 'min(k,4)', 'k' or 'full', or selection 'last'"
            )
        for dataset in self.symptoms:
            if dataset not in words.symptom_keys(self.datasets):
                raise UsageError(
                    f"symptoms: a file is given for '{dataset}', which is not among the datasets "
                    f"{', '.join(self.datasets)}"
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
        if spec.symptoms:
            based["symptoms"] = {name: folder / file for name, file in spec.symptoms.items()}
        return spec.model_copy(update=based)

    def to_yaml(self) -> str:
        """The suite that says all of this; `from_yaml_text` reads it back."""
        values = {key: getattr(self, key) for key in type(self).model_fields}
        values["methods"] = [method.as_yaml() for method in self.methods]
        values["symptoms"] = {name: str(file) for name, file in self.symptoms.items()}
        for key, value in values.items():
            if isinstance(value, Path | tuple):
                values[key] = str(value) if isinstance(value, Path) else list(value)
        first = {"title": values.pop("title")}
        return dump_yaml({k: v for k, v in (first | values).items() if v is not None and v != {}})

    def save(self, folder: Path | None = None) -> Path:
        """Write `suite.yaml` into `folder` (by default `out`, made where it is missing), so that
        `--suite FOLDER/suite.yaml` goes on with this run from anywhere; returns its path."""
        folder = folder or self.out
        folder.mkdir(parents=True, exist_ok=True)
        given = [key for key in ("data_root", "plugins_dir") if getattr(self, key) is not None]
        update: dict[str, Any] = {key: getattr(self, key).absolute() for key in given}
        update["symptoms"] = {name: file.absolute() for name, file in self.symptoms.items()}
        same = folder.absolute() == self.out.absolute()
        update["out"] = Path() if same else self.out.absolute()
        file = folder / SUITE_NAME
        part = file.with_suffix(".part")
        part.write_text(self.model_copy(update=update).to_yaml(), encoding="utf-8")
        part.replace(file)
        return file

    def merge(self, flags: Mapping[str, Any], settings: Sequence[str] = ()) -> Self:
        """This suite with `flags` (field -> value as on the command line; None = not given) and
        `settings` ("method.hparam=value", for every entry of that method). Raises UsageError."""
        values: dict[str, Any] = {key: getattr(self, key) for key in self.model_fields_set}
        # A suite's symptom file for a dataset that the flags took out of the run is dropped.
        files = values.pop("symptoms", {})
        given = {key: value for key, value in flags.items() if value is not None}
        symptom_flags = given.pop("symptoms", ())
        spec = type(self).parse({**values, **given})
        keys = words.symptom_keys(spec.datasets)
        files = {name: file for name, file in files.items() if name in keys}
        files |= words.symptom_flags(symptom_flags, spec.datasets)
        update: dict[str, Any] = {"symptoms": files} if files else {}
        if settings:
            update["methods"] = _with_settings(spec.methods, settings)
        kept = {key: getattr(spec, key) for key in spec.model_fields_set}
        return type(self).parse({**kept, **update})


def _with_settings(
    methods: tuple[MethodSpec, ...], settings: Sequence[str]
) -> tuple[MethodSpec, ...]:
    changes: dict[str, dict[str, Scalar]] = {}
    known = {method.name for method in methods}
    for flag in settings:
        name, hparam, value = words.setting(flag)
        if name not in known:
            raise unknown("method", name, known, "--set takes a method of this run.")
        if hparam in changes.setdefault(name, {}):
            raise UsageError(f"--set is given twice for {name}.{hparam}")
        changes[name][hparam] = value
    return tuple(m.with_hparams(changes[m.name]) if m.name in changes else m for m in methods)
