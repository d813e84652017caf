"""One cell's record: everything that made one number of a table.

A record is a tree of JSON values; `docs/results.md` documents each field. What a record says of
itself is checked when it is made and again when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vipbench.text import shots_text

# Parts whose numbers may rightly be infinite (a threshold switched off, say): JSON has no word
# for it, so it is kept as the text "inf", "-inf" or "nan". In other parts such a number states only
# that nothing could be measured, and becomes null.
SPELT_OUT = ("hparams", "recipe")

# Stands in an exported record where a path was.
PATH = "<path>"


def dump(value: Any) -> str:
    """ASCII JSON on one line; ValueError for NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def json_sha256(content: Any) -> str:
    """SHA-256 of anything that JSON can hold, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(value: Any, where: str, spelt_out: bool) -> Any:
    """`value` as a tree of JSON values: tuples, sets, paths, numpy's and pydantic's things too.

    where: the dotted name that an error gives. spelt_out: see SPELT_OUT. Raises ValueError.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # Undecodable bytes of a file name come as lone surrogates, which UTF-8 cannot hold.
        return str(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value) or where.startswith("metrics"):
            return float(value)
        return str(float(value)) if spelt_out else None
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True)
    if isinstance(value, Mapping):
        return {
            as_json(str(k), where, spelt_out): as_json(v, f"{where}.{k}", spelt_out)
            for k, v in value.items()
        }
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [as_json(v, f"{where}[{i}]", spelt_out) for i, v in enumerate(value)]
    if hasattr(value, "__fspath__"):
        return as_json(str(value), where, spelt_out)
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


SCHEMA = 1

Shots = Annotated[int, Field(ge=0, strict=True)] | Literal["full"]

Count = Annotated[int, Field(ge=0, strict=True)]

Name = Annotated[str, Field(min_length=1)]


class RecordError(ValueError):
    """A record, or the predictions beside it, that is not what it should be; the message says
    which field, what it holds and what was expected."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _OpenPart(BaseModel):
    """Further JSON fields are kept: a later setting must not be lost by an older reader."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


class CellId(_Part):
    """Which cell of the grid. `method` is the row's label, `method_name` the registered method.
    shots: images per class, "full", or 0 for methods that see no support set."""

    backbone: Name
    dataset: Name
    method: Name
    method_name: Name
    shots: Shots
    seed: Count

    def words(self) -> str:
        """The cell for people; without a seed where nothing is drawn."""
        seed = "" if self.shots == self.seed == 0 else f", seed {self.seed}"
        return (
            f"{self.method} on {self.dataset} with {self.backbone}, {shots_text(self.shots)}{seed}"
        )


class Protocol(_OpenPart):
    """How the cell was run; two records that differ here are never averaged."""

    views: str | int
    sampler: str
    validation: str | int
    selection: str
    precision: str
    shots_unit: str = "image"


class Data(_OpenPart):
    """What the cell saw. Counts are images per class, in `class_names`' order, of the dataset's
    whole splits; n_support and n_val are the images that this cell was given."""

    class_names: list[str] = []
    train_counts: list[Count] = []
    val_counts: list[Count] = []
    test_counts: list[Count] = []
    n_support: Count = 0
    n_val: Count = 0
    fingerprint: str = ""
    licence: str | None = None
    caption: str | None = None
    symptoms_sha256: str | None = None

    @model_validator(mode="after")
    def _counts_match_classes(self) -> Self:
        for name in ("train_counts", "val_counts", "test_counts"):
            counts = getattr(self, name)
            if counts and len(counts) != len(self.class_names):
                raise ValueError(
                    f"{name} has {len(counts)} numbers for {len(self.class_names)} classes"
                )
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names holds a name twice")
        return self


class Failure(_OpenPart):
    """Why the cell has no number. `plugin` and `file` name where the failing code came from."""

    type: str
    message: str
    traceback: str | None = None
    plugin: str | None = None
    file: str | None = None


class Record(_Part):
    """One cell, done or failed. Frozen; equal records have equal JSON.

    Made by `Record.of(mapping)` (or keywords), read by `Record.from_json`. Raises RecordError from
    those two, pydantic's ValidationError (also a ValueError) from keywords.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    status: Literal["ok", "error"]
    cell: CellId
    hparams: dict[str, Any] = {}
    recipe: dict[str, Any] | None = None
    protocol: Protocol
    data: Data = Data()
    provenance: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    timing: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    notes: list[str] = []
    error: Failure | None = None
    created: str

    @model_validator(mode="before")
    @classmethod
    def _only_json_values(cls, value: Any, info: ValidationInfo) -> Any:
        # What comes as JSON is JSON already; walking it again would dominate reading a store.
        if info.mode == "json" or not isinstance(value, Mapping):
            return value
        return {k: as_json(v, str(k), str(k) in SPELT_OUT) for k, v in value.items()}

    @field_validator("created")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                "expected an ISO 8601 time such as 2025-01-31T12:00:00+00:00"
            ) from None
        return value

    @model_validator(mode="after")
    def _status_matches(self) -> Self:
        if self.status == "error":
            if self.error is None:
                raise ValueError("status 'error' without an error")
            if self.metrics:
                raise ValueError("status 'error' with metrics: a failed cell has no number")
            return self
        if self.error is not None:
            raise ValueError("status 'ok' with an error")
        if len(self.data.class_names) < 2 or not self.data.test_counts or not self.data.fingerprint:
            raise ValueError("status 'ok' needs data.class_names, test_counts and fingerprint")
        _check_metrics(self.metrics, self.data)
        return self

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Record:
        """From a mapping shaped like the record's JSON; tuples, paths and numpy scalars are
        turned into JSON values. Raises RecordError."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise RecordError(_explain(error)) from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """The record that `to_json` wrote. Raises RecordError."""
        if isinstance(text, str):
            text = text.encode("utf-8", "surrogatepass")
        # JSON has no NaN; pydantic's reader takes it. Only where the word occurs is it looked for.
        if b"NaN" in text or b"Infinity" in text:
            _refuse_non_finite(text)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            newer = _newer_schema(text)
            raise RecordError(newer or _explain(error)) from None

    def to_dict(self) -> dict[str, Any]:
        """The record as a tree of JSON values, fields in the documented order."""
        return self.model_dump(by_alias=True)

    def to_json(self) -> str:
        """ASCII JSON on one line; equal records give equal text."""
        return dump(self.to_dict())

    def to_json_parts(self) -> tuple[str, str]:
        """The JSON without its history, and the history's, as the store keeps them."""
        value = self.to_dict()
        history = value.pop("history")
        return dump(value), dump(history)

    def part(self, name: str) -> dict[str, Any]:
        """A part of the provenance; empty where there is none of that name."""
        found = self.provenance.get(name)
        return found if isinstance(found, dict) else {}

    @classmethod
    def from_json_parts(cls, text: str, history: str) -> Record:
        """The record that `to_json_parts` took apart. Raises RecordError."""
        return cls.from_json(f'{text.rstrip()[:-1]},"history":{history}}}')

    def sharing(self, seen: dict[str, Any]) -> Record:
        """The same record, whose parts are those of earlier ones where they are equal: most of the
        memory that a folder's records take. seen: what was met so far; it is added to."""

        def first(value: Any) -> Any:
            return seen.setdefault(repr(value), value)

        own = {
            name: first(getattr(self, name)) for name in ("hparams", "recipe", "protocol", "data")
        }
        own["provenance"] = {
            name: first(v) if name != "key_parts" else v for name, v in self.provenance.items()
        }
        if isinstance(parts := own["provenance"].get("key_parts"), dict):
            own["provenance"]["key_parts"] = {name: first(value) for name, value in parts.items()}
        return self.model_copy(update=own)

    @property
    def ok(self) -> bool:
        """Whether the cell has numbers."""
        return self.status == "ok"

    @property
    def slot(self) -> tuple[str, str, str, int | str, int]:
        """The place in a grid: (backbone, dataset, method label, shots, seed)."""
        c = self.cell
        return (c.backbone, c.dataset, c.method, c.shots, c.seed)

    @property
    def needs(self) -> frozenset[str]:
        """What the method declares it needs, of "symptoms", "val", "test_images", …"""
        method = self.provenance.get("method")
        needs = method.get("needs") if isinstance(method, dict) else None
        found = needs if isinstance(needs, list) else ()
        return frozenset(n for n in found if isinstance(n, str))

    @property
    def apart(self) -> Literal["", "transductive", "views"]:
        """How its method sees more of the test images than one view of one image at a time, so that
        it is not ranked with the others: "transductive", or several "views" of each."""
        if "test_images" in self.needs:
            return "transductive"
        return "views" if "test_views" in self.needs else ""

    @property
    def texts_saw_more(self) -> int | None:
        """How many labelled images of a class its texts were written from, where that is more
        than its shots: such a row knows more of the classes than its column says."""
        seen, shots = getattr(self.data, "symptom_images_seen", 0), self.cell.shots
        reads = self.needs & {"symptoms", "descriptions"}
        if not isinstance(shots, int) or type(seen) is not int or not reads:
            return None
        return seen if seen > shots else None


def _check_metrics(metrics: Mapping[str, Any], data: Data) -> None:
    n = metrics.get("n")
    if type(n) is not int or n != sum(data.test_counts) or n < 1:
        raise ValueError(f"metrics.n is {n!r}; expected the {sum(data.test_counts)} test images")
    if type(metrics.get("accuracy")) is not float:
        raise ValueError(f"metrics.accuracy is {metrics.get('accuracy')!r}; expected a fraction")
    for name, value in metrics.items():
        values = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(v, float) and not math.isfinite(v) for v in values):
            raise ValueError(f"metrics.{name} is not finite")


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        problems.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "not a valid record: " + "; ".join(problems)


def _refuse_non_finite(text: bytes) -> None:
    def refuse(word: str) -> None:
        raise RecordError(f"not a valid record: it holds {word}, which JSON does not know")

    try:
        json.loads(text, parse_constant=refuse)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"not a valid record: {error}") from None


def _newer_schema(text: bytes) -> str | None:
    try:
        found = json.loads(text).get("schema")
    except (ValueError, AttributeError, RecursionError):
        return None
    if isinstance(found, int) and found > SCHEMA:
        return (
            f"the record has schema {found}, this vipbench reads up to {SCHEMA}: upgrade vipbench"
        )
    return None


def sha256(data: str | bytes) -> str:
    """SHA-256 in hexadecimal; texts as UTF-8."""
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()
