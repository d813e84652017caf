"""Records and predictions as CSV files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from vipbench.errors import printable
from vipbench.files import replacing
from vipbench.results.records.metrics import METRICS
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record

# What spreadsheets take for the start of a formula (full-width forms included), and the apostrophe
# itself, so that taking one leading apostrophe off always gives the text back.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")

RECORD_COLUMNS = (
    "key status backbone dataset method method_name shots seed n "
    + " ".join(m.name for m in METRICS.values())
    + " left_out views sampler validation selection precision shots_unit n_support n_val "
    "dataset_fingerprint symptoms_sha256 backbone_fingerprint plugin plugin_version plugin_sha256 "
    "method_revision vipbench torch device hparams recipe protocol timing notes error_type "
    "error_message created submitter verified"
).split()


def safe_text(text: str) -> str:
    """`text`, with an apostrophe before it where a spreadsheet would run it as a formula."""
    return "'" + text if text.startswith(_FORMULA) else text


def csv_rows(file: IO[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV. None is an empty field, dicts and lists are JSON, texts go through
    `safe_text`."""
    plain = csv.writer(file, lineterminator="\n")
    # Python before 3.13 leaves a lone carriage return unquoted, and readers end the row there.
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        fields = [_field(value) for value in row]
        lone = any(isinstance(field, str) and "\r" in field for field in fields)
        (quoted if lone else plain).writerow(fields)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as the text of a CSV file; see `csv_rows`."""
    out = io.StringIO()
    csv_rows(out, rows)
    return out.getvalue()


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a UTF-8 CSV file, whole or not at all; see `csv_rows`. Raises OSError."""
    with replacing(path) as file:
        csv_rows(file, [header])
        csv_rows(file, rows)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """One row a record, in RECORD_COLUMNS; control characters are shown, see `printable`. Raises
    OSError."""
    rows = (record_row(record) for record in records)
    shown = ([printable(v) if isinstance(v, str) else v for v in row] for row in rows)
    write_csv(path, RECORD_COLUMNS, shown)


def write_predictions(path: Path, pairs: Iterable[tuple[Record, Predictions]]) -> None:
    """One row a record and image; `scores` are a JSON list in the order of the record's classes.
    Raises OSError."""
    header = ["key", "id", "group", "label", "predicted", "scores"]
    write_csv(path, header, (row for record, p in pairs for row in _image_rows(record, p)))


def _image_rows(record: Record, p: Predictions) -> Iterator[list[Any]]:
    names = record.data.class_names
    for i, (label, scores) in enumerate(zip(p.labels, p.scores, strict=True)):
        group = None if p.groups is None else p.groups[i]
        predicted = names[int(scores.argmax())]
        # float32's own shortest text reads back as the same float32.
        values = [float(str(v)) for v in scores]
        yield [record.key, p.ids[i], group, names[int(label)], predicted, values]


def record_row(record: Record) -> list[Any]:
    """A record's values in RECORD_COLUMNS; compound ones as JSON values."""
    c, d, p, made = record.cell, record.data, record.protocol, record.provenance
    method, backbone = _dict(made.get("method")), _dict(made.get("backbone"))
    known = type(p).model_fields
    more = {k: v for k, v in p.model_dump().items() if k not in known}
    failure = record.error
    return [
        *(
            record.key,
            record.status,
            c.backbone,
            c.dataset,
            c.method,
            c.method_name,
            c.shots,
            c.seed,
        ),
        record.metrics.get("n"),
        *(record.metrics.get(name) for name in METRICS),
        record.metrics.get("left_out"),
        *(p.views, p.sampler, p.validation, p.selection, p.precision, p.shots_unit),
        *(d.n_support, d.n_val, d.fingerprint, d.symptoms_sha256),
        backbone.get("fingerprint"),
        *(method.get(k) for k in ("plugin", "version", "file_sha256", "revision")),
        *(made.get(k) for k in ("vipbench", "torch", "device")),
        *(record.hparams, record.recipe, more, record.timing, record.notes),
        failure.type if failure else None,
        failure.message if failure else None,
        record.created,
        made.get("submitter"),
        not made.get("unverified", False),
    ]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _field(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        return printable(json.dumps(value, ensure_ascii=False, allow_nan=False))
    if isinstance(value, str):
        # A lone surrogate, an undecodable byte of a file name, has no place in UTF-8.
        return safe_text(value.encode("utf-8", "backslashreplace").decode())
    return value
