"""The messages between a driver and its workers: a line of JSON each, validated where it arrives.

A driver sends a `Request`: a command, and what code the worker may run. The worker answers with
events, the last of which is `Ready`. Commands are named by verbs, events by what happened.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from vipbench.results import Predictions, Record
from vipbench.results.records.plan import PlannedCell
from vipbench.runspec.run import RunSpec


class MessageError(ValueError):
    """A line that is not a message."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# Fields that JSON has no type for.


def _blob(value: Any) -> Any:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


Blob = Annotated[bytes, BeforeValidator(_blob), PlainSerializer(_text)]


def _predictions(value: Any) -> Predictions:
    if isinstance(value, Predictions):
        return value
    scores = np.frombuffer(_blob(value["scores"]), dtype="<f4").reshape(value["shape"])
    labels = np.asarray(value["labels"], dtype=np.int64)
    return Predictions(value["ids"], value["groups"], labels, scores)


def _predictions_as_json(value: Predictions) -> dict[str, Any]:
    return {
        "ids": value.ids,
        "groups": value.groups,
        "labels": value.labels.tolist(),
        "shape": value.scores.shape,
        "scores": _text(value.scores.astype("<f4").tobytes()),
    }


def _record(value: Any) -> Record:
    return value if isinstance(value, Record) else Record.of(value)


def _spec(value: Any) -> RunSpec:
    return value if isinstance(value, RunSpec) else RunSpec.parse(value)


AnyPredictions = Annotated[
    Predictions, PlainValidator(_predictions), PlainSerializer(_predictions_as_json)
]
AnyRecord = Annotated[Record, PlainValidator(_record), PlainSerializer(Record.to_dict)]
AnySpec = Annotated[RunSpec, PlainValidator(_spec), PlainSerializer(RunSpec.as_values)]


# Parts of messages.


class Encoding(_Message):
    """Images to encode. items: (index in the split, number of the view) of each. views: the fields
    of `Views` and the seed of training views, None for evaluation views."""

    backbone: str
    dataset: str
    split: str
    items: tuple[tuple[int, int], ...]
    views: tuple[dict[str, Any], int] | None


class Want(_Message):
    """What workers that have loaded exactly these plugins encode for others."""

    plugins: tuple[str, ...]
    encodings: tuple[Encoding, ...]


class Lack(_Message):
    """Further backbones that cells with the code of these plugins read and that cannot be loaded
    here. backbones: the name of each, as in `Plan.registered`, or the source of one with code of
    its own."""

    plugins: tuple[str, ...]
    backbones: tuple[str, ...]


@dataclass(frozen=True)
class CatalogueEntry:
    """One registered thing for `vipbench list`; kind: method, backbone or dataset."""

    kind: str
    name: str
    help: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """What one group of cells will take. group: the row. work_seconds: to train and score; None
    where it is unknown. note: why. What groups share is counted with the first. view_seconds: of
    the encoding, for training views; saved_seconds: of these, what 8 views would save. measured:
    how many cells were timed; the others are taken to be like them."""

    group: str
    cells: int
    note: str = ""
    encode_seconds: float = 0.0
    view_seconds: float = 0.0
    saved_seconds: float = 0.0
    work_seconds: float | None = None
    measured: int = 0
    cache_bytes: int = 0
    result_bytes: int = 0
    memory_bytes: int = 0


# Commands.


class ListPlugins(_Message):
    """List what is registered. count: with trainable parameters. closures: of these methods' plugin
    files, and these alone, also what the class consists of, see `vipbench.plugins.closure`."""

    do: Literal["list_plugins"] = "list_plugins"
    plugins_dir: str | None = None
    count: bool = False
    closures: Mapping[str, str] = {}


class MakePlan(_Message):
    """Expand a RunSpec into cells. number: which of the run's workers this is; it decides the
    device. plugins: sources of users' plugins and of backbones with code of their own. These alone
    are loaded then, and only cells that run the code of all of them are planned; by default all
    plugins are loaded and all cells planned."""

    do: Literal["make_plan"] = "make_plan"
    spec: AnySpec
    number: int = 0
    plugins: tuple[str, ...] | None = None


class RunCells(_Message):
    """Run one group: cells of the same row, dataset and backbone. ahead: cells of this backbone and
    dataset that come later; their images are encoded now, in the same batches."""

    do: Literal["run_cells"] = "run_cells"
    keys: tuple[str, ...]
    ahead: tuple[str, ...] = ()


class FindWants(_Message):
    """List the images of one group that workers with fewer plugins should encode."""

    do: Literal["find_wants"] = "find_wants"
    keys: tuple[str, ...]


class Encode(_Message):
    """Encode images for cells that other processes run."""

    do: Literal["encode"] = "encode"
    encodings: tuple[Encoding, ...]


class EncodeCells(_Message):
    """Encode the images that these cells read, for the workers that run them later. encodings:
    encoded first, for others (see `FindWants`)."""

    do: Literal["encode_cells"] = "encode_cells"
    keys: tuple[str, ...]
    encodings: tuple[Encoding, ...] = ()


class MakeEstimate(_Message):
    """Measure what one group will take. seconds: after which no further cell is measured."""

    do: Literal["make_estimate"] = "make_estimate"
    keys: tuple[str, ...]
    seconds: float = 3600.0


class Track(_Message):
    """Call the hook of a plugin's tracker. source: the plugin. hook: its name, "" to load the
    plugin only. run, cell: the fields of `TrackedRun` and `TrackedCell`."""

    do: Literal["track"] = "track"
    plugins_dir: str | None = None
    source: str
    hook: str
    run: Mapping[str, Any] = {}
    cell: Mapping[str, Any] | None = None


Command: TypeAlias = (
    ListPlugins | MakePlan | RunCells | FindWants | Encode | EncodeCells | MakeEstimate | Track
)


class Grants(_Message):
    """What code a worker may run; see `trust.grants`."""

    everything: bool
    named: tuple[str, ...]
    digests: tuple[str, ...]


class Request(_Message):
    """A command, and what code it may run."""

    command: Annotated[Command, Field(discriminator="do")]
    code: Grants


# Events.


class Catalogue(_Message):
    """What is registered."""

    event: Literal["catalogue"] = "catalogue"
    entries: tuple[CatalogueEntry, ...]


class TextsSeen(_Message):
    """The first texts of the class `of`, the first, that a method gives to the text tower."""

    method: str
    dataset: str
    of: str
    texts: tuple[str, ...]


class Plan(_Message):
    """All cells of a run, in table order.

    notices: lines that a person should see. texts: by method and dataset. info: device, number of
    workers and versions, as the worker found them. broken: sentences on the plugins that cannot be
    planned with, and on what is left out for that. unknown, lacks: what of the run no plugin which
    is loaded registers. loaded: sources of the plugins that were loaded. registered: what these
    register, such as "method 'x'".
    reads: the user's files that were read, where no plugin was loaded.
    """

    event: Literal["plan"] = "plan"
    cells: list[PlannedCell] = []
    notices: list[str] = []
    texts: list[TextsSeen] = []
    info: dict[str, str] = {}
    broken: list[str] = []
    unknown: tuple[str, ...] = ()
    lacks: tuple[Lack, ...] = ()
    loaded: tuple[str, ...] = ()
    registered: tuple[str, ...] = ()
    reads: list[str] | None = None

    def of(self, status: str) -> list[PlannedCell]:
        """The cells of one status."""
        return [cell for cell in self.cells if cell.status == status]

    def groups(self) -> list[list[str]]:
        """The keys of the cells that are to be done, by the group that they run in."""
        found: dict[str, list[str]] = {}
        for cell in self.of("todo"):
            found.setdefault(cell.group, []).append(cell.key)
        return list(found.values())


class Begun(_Message):
    """A group begins. records: the part of its cells' records that is known in advance, so that the
    driver can write error records if the worker ends."""

    event: Literal["begun"] = "begun"
    records: tuple[dict[str, Any], ...]


class Tick(_Message):
    """A sign of life. share: in [0,1], of the training at hand. encoded: while images are encoded,
    how many images and views are done, and of how many."""

    event: Literal["tick"] = "tick"
    share: float = 0.0
    encoded: tuple[int, int] | None = None


class Done(_Message):
    """A finished or failed cell. parameters: the learned parameters as a safetensors file, if
    small. left: how many cells of the same training follow directly."""

    event: Literal["done"] = "done"
    record: AnyRecord
    predictions: AnyPredictions | None = None
    parameters: Blob | None = None
    left: int = 0


class GroupDone(_Message):
    """All cells of a group have their records. spoilt: a method changed what the worker's later
    cells would use."""

    event: Literal["group_done"] = "group_done"
    encoded_images: int
    encoded_texts: int
    spoilt: bool


class Wants(_Message):
    """The answer to `FindWants`."""

    event: Literal["wants"] = "wants"
    wants: tuple[Want, ...]


class Estimated(_Message):
    """The answer to `MakeEstimate`."""

    event: Literal["estimated"] = "estimated"
    estimate: Estimate


class Tracked(_Message):
    """The answer to `Track`."""

    event: Literal["tracked"] = "tracked"


class Note(_Message):
    """A line for the user."""

    event: Literal["note"] = "note"
    text: str


class Importing(_Message):
    """The import of a plugin begins. plugin: its source."""

    event: Literal["importing"] = "importing"
    plugin: str


class Refused(_Message):
    """The command cannot be carried out; the message is for the user."""

    event: Literal["refused"] = "refused"
    message: str


class Untrusted(_Message):
    """The command needs code that the worker may not run; the fields are those of
    `UntrustedCodeError`."""

    event: Literal["untrusted"] = "untrusted"
    what: str
    asked: str
    files: tuple[tuple[str, str], ...]


class Ready(_Message):
    """The worker waits for a command."""

    event: Literal["ready"] = "ready"


Event: TypeAlias = (
    Catalogue
    | Plan
    | Begun
    | Tick
    | Done
    | GroupDone
    | Wants
    | Estimated
    | Tracked
    | Note
    | Importing
    | Refused
    | Untrusted
    | Ready
)

_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def to_line(message: Request | Event) -> bytes:
    """One line of ASCII. Names of files may hold undecodable bytes, which only `json` escapes."""
    return json.dumps(message.model_dump(mode="python")).encode("ascii") + b"\n"


def read_request(line: bytes) -> Request:
    """Raises MessageError."""
    try:
        return Request.model_validate(json.loads(line))
    except (ValueError, ValidationError) as error:
        raise MessageError(f"not a request: {error}") from error


def read_event(line: bytes) -> Event:
    """Raises MessageError."""
    try:
        return _EVENTS.validate_python(json.loads(line))
    except (ValueError, ValidationError) as error:
        raise MessageError(f"not an event: {error}") from error
