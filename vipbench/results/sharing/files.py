"""Exported rows as files: Parquet, CSV, JSON lines."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from vipbench.errors import UsageError, unknown
from vipbench.files import replacing
from vipbench.results.records.csv import write_csv
from vipbench.results.records.metrics import METRICS
from vipbench.results.records.record import dump
from vipbench.results.sharing.limits import (
    MOST_COLUMNS,
    MOST_ROW,
    MOST_VALUES,
    Budget,
    limited_memory,
)
from vipbench.results.sharing.rows import COLUMNS, JSON_COLUMNS, Row

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl"}
_WHOLE = ("export_schema", "seed", "n", "n_support", "n_val", "method_revision")
_REAL = tuple(m.name for m in METRICS.values() if not m.per_class)


def format_of(path: Path, given: str | None) -> str:
    """The format's name: as given, or by the file's ending. Raises UsageError."""
    if given is not None:
        if given not in SUFFIXES.values():
            raise unknown("format", given, SUFFIXES.values())
        return given
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"'{path}' has no known extension; name it {', '.join('*' + s for s in SUFFIXES)} or "
            "give --format"
        )
    return SUFFIXES[path.suffix.lower()]


def write_rows(path: Path, rows: Iterable[Row], form: str) -> None:
    """Write a file whole or not at all. Raises UsageError without the package that Parquet needs,
    OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "csv":
        write_csv(path, COLUMNS, ([_flat(row, name) for name in COLUMNS] for row in rows))
        return
    if form == "jsonl":
        with replacing(path) as file:
            file.writelines(dump(row) + "\n" for row in rows)
        return
    with replacing(path, "wb") as file:
        _write_parquet(file, rows)


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file in any of the formats. Raises UsageError, OSError."""
    form = format_of(path, None)
    try:
        yield from {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}[form](path)
    except UsageError:
        raise
    except (ValueError, csv.Error, RecursionError, OverflowError, MemoryError) as error:
        # No UTF-8, no JSON, endless digits, nesting or fields.
        raise UsageError(f"'{path}' is not a {form} file that vipbench exported: {error}") from None


def _flat(row: Row, name: str) -> Any:
    value = row[name]
    return dump(value) if name in JSON_COLUMNS and value is not None else value


def _parquet() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "Parquet files need the package pyarrow: pip install 'vipbench[parquet]', or choose "
            "--format csv or jsonl"
        ) from None
    return pyarrow


def _write_parquet(file: IO[bytes], rows: Iterable[Row]) -> None:
    arrow = _parquet()
    kinds = dict.fromkeys(COLUMNS, arrow.string())
    kinds |= dict.fromkeys(_WHOLE, arrow.int64()) | dict.fromkeys(_REAL, arrow.float64())
    kinds["verified"] = arrow.bool_()
    schema = arrow.schema(list(kinds.items()))
    with arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        batch: list[Row] = []
        for row in rows:
            batch.append({name: _flat(row, name) for name in COLUMNS})
            if len(batch) == 500:
                writer.write_table(arrow.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(arrow.Table.from_pylist(batch, schema))


def _read_parquet(path: Path) -> Iterator[Row]:
    arrow = _parquet()
    budget = Budget(path)
    try:
        with path.open("rb") as opened:
            budget.row(_footer_size(opened))
            file = arrow.parquet.ParquetFile(opened)
            _check_columns(path, file.schema_arrow.names)
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            sizes = (max(group.total_byte_size, 0) for group in groups)
            budget.announced(sum(sizes), max(file.metadata.num_rows, 0))
            _check_kinds(path, arrow, file.schema_arrow)
            # Few rows at once: a text that is stored once may stand in every row.
            batches = file.iter_batches(4, columns=list(COLUMNS), use_threads=False)
            while True:
                with limited_memory():
                    batch = next(batches, None)
                if batch is None:
                    break
                for i in range(batch.num_rows):
                    budget.row(batch.slice(i, 1).nbytes)
                for row in batch.to_pylist():
                    yield {k: _read_json(k, v, budget) for k, v in row.items()}
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; pyarrow's own, of what a damaged file says, carry no number
        raise UsageError(
            f"'{path}' is not a parquet file that vipbench exported: {error}"
        ) from None


def _footer_size(file: BinaryIO) -> int:
    """What the last bytes of a Parquet file say of its description, which is read as a whole."""
    file.seek(max(0, file.seek(0, 2) - 8))
    size = int.from_bytes(file.read(4), "little")
    file.seek(0)
    return size


def _check_kinds(path: Path, arrow: Any, schema: Any) -> None:
    """Lists and the like may hold any number of values in a row."""
    types = arrow.types
    plain = (types.is_string, types.is_large_string, types.is_null, types.is_primitive)
    for name in COLUMNS:
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not any(fits(kind) for fits in plain):
            raise UsageError(
                f"'{path}': its column '{name}' holds {kind}; expected text or numbers, as "
                "`vipbench export` writes"
            )


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for row in json_rows(file, Budget(path)):
            if not isinstance(row, dict):
                raise UsageError(f"'{path}' has a line that is not a JSON object")
            _check_columns(path, row)
            yield row


def json_rows(file: BinaryIO, budget: Budget) -> Iterator[Any]:
    """The value of each line. Raises UsageError for too much, ValueError, RecursionError."""
    while line := file.readline(MOST_ROW + 1):
        budget.row(len(line))
        yield budget.json(line.decode())


def _read_csv(path: Path) -> Iterator[Row]:
    budget = Budget(path)
    row = values = 0  # bytes, roughly: a row may have several lines

    def lines(file: TextIO) -> Iterator[str]:
        nonlocal row, values
        while line := file.readline(MOST_ROW + 1 - row):
            row += len(line)
            values += line.count(",")
            if row > MOST_ROW or values > MOST_VALUES:
                budget.row(row, values)
            yield line

    before = csv.field_size_limit(MOST_ROW)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(lines(file))
            _check_columns(path, rows.fieldnames or ())
            values = 0
            for found in rows:
                budget.row(row)
                row = values = 0
                yield {k: _typed(k, v, budget) for k, v in found.items() if k is not None}
    finally:
        csv.field_size_limit(before)


def _typed(name: str, text: str | None, budget: Budget) -> Any:
    if not text:
        return None
    # The apostrophe that keeps a spreadsheet from running a text as a formula.
    text = text.removeprefix("'")
    if name in _WHOLE:
        return int(text) if text.isdecimal() else text
    return _read_json(name, text, budget)


def _read_json(name: str, value: Any, budget: Budget) -> Any:
    return budget.json(value) if name in JSON_COLUMNS and isinstance(value, str) else value


def _check_columns(path: Path, names: Collection[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise UsageError(f"'{path}' has {len(names):,} columns, over the limit of {MOST_COLUMNS:,}")
    unique = set(names)
    if len(unique) < len(names):
        raise UsageError(f"'{path}' has two columns of one name; expected each once")
    missing = [name for name in COLUMNS if name not in unique]
    if missing:
        raise UsageError(
            f"'{path}' lacks the columns {', '.join(missing[:5])}: it is not what "
            "`vipbench export` writes"
        )
