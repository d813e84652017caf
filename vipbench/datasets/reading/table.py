"""Reading a table as spreadsheets and programs write it: commas, semicolons or tabs, a `sep=` line,
UTF-8 or UTF-16."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from vipbench.api.dataset import DataError
from vipbench.datasets.reading.spelling import column_key

SEPARATORS = (",", ";", "\t", "|")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEP_LINE = re.compile(r'"?sep=(.|\\t)"?[ ,;\t]*(?:\r\n|\r|\n|\Z)', re.IGNORECASE)


def read_table(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Rows, each with `manifest 'x.csv', row n` (lines of the file, from 1); the first is the
    header. wanted: names of columns; where no `sep=` line says it, that character separates which
    finds most of them. Raises DataError naming file and row."""
    text = _text(path)
    given = _SEP_LINE.match(text)
    if given is not None:
        separator, skipped = given[1].replace("\\t", "\t"), 1
        text = text[given.end() :]
    else:
        separator, skipped = _separator(text, wanted), 0
    first_line = 1
    # People write spaces after commas, and quotes behind these.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True
    )
    try:
        for row in reader:
            if not row and reader.line_num == first_line:  # blank lines above the header
                first_line += 1
                continue
            yield f"manifest '{path}', row {reader.line_num + skipped}", row
    except csv.Error as error:
        raise DataError(f"manifest '{path}', row {reader.line_num + skipped}: {error}") from error


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"manifest '{path}' cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 0 in data[:2]:
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"manifest '{path}' is not {encoding[:6].upper()} text (byte {error.start}); save it "
            "as UTF-8"
        ) from error


def _separator(text: str, wanted: Collection[str]) -> str:
    """What separates the cells of the first row; a comma where nothing tells."""

    def found(separator: str) -> tuple[int, int]:
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True
        )
        try:
            names = [column_key(name) for name in next(filter(None, reader), [])]
        except csv.Error:
            return 0, 0
        return sum(column_key(name) in names for name in wanted), len(names)

    return max(SEPARATORS, key=found)
