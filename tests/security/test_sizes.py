"""Small files from others that unpack to gigabytes are refused, in little memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vipbench.cli.commands.reproduce import reproduce_command
from vipbench.errors import UsageError
from vipbench.results.sharing.bundle import write_bundle
from vipbench.results.sharing.rows import COLUMNS

MIB = 1 << 20
MOST_RSS = 700 * MIB
# Reads each file to its end, as `import` and `reproduce` do, in a process of its own, and says how
# much memory that took.
READ = """
import io, json, os, re, signal, sys
from contextlib import suppress
from pathlib import Path
with suppress(ImportError):
    import pyarrow.parquet
from vipbench.errors import UsageError
from vipbench.results.sharing.bundle import read_bundle
from vipbench.results.sharing.files import json_rows, read_file
from vipbench.results.sharing.limits import Budget

def read(path):
    try:
        if path.suffix == ".zip":
            records = read_bundle(path)[1]["records.jsonl"]
            rows = list(json_rows(io.BytesIO(records), Budget(path)))
        else:
            for row in read_file(path):
                pass
    except UsageError as error:
        return str(error)
    return "read"

for line in sys.stdin:
    if os.fork() == 0:
        signal.alarm(120)
        said = read(Path(line.strip()))
        peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
        print(json.dumps([said, int(peak)]), flush=True)
        os._exit(0)
    if os.wait()[1]:
        print("null", flush=True)
"""
Read = Callable[[Path], str]


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4096 * MIB, 4096 * MIB))


@pytest.fixture(scope="module")
def read() -> Iterator[Read]:
    """What reading a file said, within the limits of memory."""
    with subprocess.Popen(
        [sys.executable, "-c", READ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=limit,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answer = process.stdin, process.stdout

        def one(path: Path) -> str:
            ask.write(f"{path}\n")
            ask.flush()
            found = json.loads(answer.readline())
            assert found is not None, "the reader ended"
            said, peak = found
            assert peak * 1024 < MOST_RSS, (said, peak)
            return str(said)

        yield one
        ask.close()


def parquet(path: Path, rows: int, column: Any, **how: Any) -> None:
    """A file with all columns; `column` is that of the notes, the others hold nothing."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    empty = arrow.nulls(rows, arrow.string())
    table = arrow.table({name: column if name == "notes" else empty for name in COLUMNS})
    write_table(table, path, compression="zstd", **how)


def one_text(path: Path) -> None:
    """One text of 200 MiB, zeros."""
    import pyarrow as pa

    parquet(path, 1, pa.array(["0" * (200 * MIB)]), use_dictionary=False, write_statistics=False)


def dictionary(path: Path) -> None:
    """A text of 5 MiB, stored once, in each of 500 rows: 2.5 GB."""
    import pyarrow as pa

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500), pa.array([f'"{"0" * 5 * MIB}"']))
    parquet(path, 500, column, store_schema=False, write_statistics=False)


def prefixes(path: Path) -> None:
    """A text of 20 MiB, of which each of 12 rows repeats all."""
    import pyarrow as pa

    text = f'"{"0" * 20 * MIB}"'
    column = pa.DictionaryArray.from_arrays(
        pa.array([0] * 12), pa.array([text])
    ).dictionary_decode()
    encoded = {"notes": "DELTA_BYTE_ARRAY"}
    parquet(path, 12, column, use_dictionary=False, column_encoding=encoded, write_statistics=False)


def understated_text(path: Path) -> None:
    """One text of 200 MiB, of which the footer says that it has less."""
    one_text(path)
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    head, content = data[:footer], data[footer:]
    for size in range(200 * MIB, 200 * MIB + 20_000):
        content = content.replace(varint(size), varint(size % 20_000))
    path.write_bytes(head + content)


def varint(number: int) -> bytes:
    """A number as Parquet's footer has it, in four bytes or, where it needs them, five."""
    number *= 2
    found = [(number >> shift) & 0x7F | 0x80 for shift in range(0, 28, 7)]
    return bytes([*found[:-1], found[-1] | 0x80, number >> 28])


def many_rows(path: Path) -> None:
    """Ten million rows that hold nothing."""
    import pyarrow as pa

    parquet(path, 10_000_000, pa.nulls(10_000_000, pa.string()))


def one_list(path: Path) -> None:
    """A list of five million zeros in one row."""
    import pyarrow as pa

    values = pa.repeat(pa.scalar(0, pa.int8()), 5_000_000)
    parquet(path, 1, pa.ListArray.from_arrays([0, 5_000_000], values))


def long_line(path: Path) -> None:
    path.write_text(json.dumps(dict.fromkeys(COLUMNS, "")) + "\n" + "[" * 40 * MIB)


def long_field(path: Path) -> None:
    path.write_text(",".join(COLUMNS) + "\n" + '"' + "0" * 40 * MIB)


def long_row(path: Path) -> None:
    """Many lines in one field."""
    path.write_text(",".join(COLUMNS) + "\n" + '"' + "0\n" * 50 * MIB)


def many_columns(path: Path) -> None:
    path.write_text(",".join([*COLUMNS, *map(str, range(1_000))]) + "\n")


def many_fields(path: Path) -> None:
    """A row of 5 million fields, which would take 300 MB."""
    path.write_text(",".join(COLUMNS) + "\n" + "a," * 5_000_000)


def twice(path: Path) -> None:
    """Each column twice."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    columns = [pa.nulls(1, pa.string())] * 2 * len(COLUMNS)
    write_table(pa.Table.from_arrays(columns, [*COLUMNS, *COLUMNS]), path)


def footer(path: Path) -> None:
    """A description of 64 MiB."""
    many_rows(path)
    path.write_bytes(path.read_bytes()[:-8] + (64 * MIB).to_bytes(4, "little") + b"PAR1")


def many_values(path: Path) -> None:
    """A row of 10 million empty lists: 30 MB would take 700."""
    path.write_text(f'{{"hparams": [{"[]," * 10_000_000}0]}}')


def packed_values(path: Path) -> None:
    """A bundle of 100 kB, of which each row is within the limit and 25 of them are 1.6 GB."""
    row = b'{"hparams": [' + b"[]," * 900_000 + b"0]}\n"
    write_bundle(path, {"suite.yaml": b"", "records.jsonl": row * 25}, {})


def manifest(path: Path) -> None:
    """A bundle of 30 kB with 10 million values in its manifest, which would take 800 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        text = '{"bundle_schema": 1, "files": {}, "a": [' + "[]," * 10_000_000 + "0]}"
        archive.writestr("manifest.json", text)


def member(path: Path) -> None:
    """A file of 200 MiB in a bundle of 200 kB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("records.jsonl", bytes(200 * MIB))


def members(path: Path) -> None:
    """Many files, each of which is small enough."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(10):
            archive.writestr(f"parameters/{number:064x}.safetensors", bytes(20 * MIB))


def understated(path: Path) -> None:
    """A file that says it has ten bytes."""
    member(path)
    data = path.read_bytes()
    path.write_bytes(data.replace((200 * MIB).to_bytes(4, "little"), (10).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("make", "ending", "fact"),
    [
        (one_text, "parquet", "bytes"),
        (dictionary, "parquet", "limit"),
        (prefixes, "parquet", "limit"),
        (understated_text, "parquet", "bytes"),
        (many_rows, "parquet", "10,000,000 rows"),
        (one_list, "parquet", "'notes' holds list<"),
        (twice, "parquet", "two columns"),
        (footer, "parquet", "bytes in one part"),
        (many_columns, "csv", "columns"),
        (many_fields, "csv", "values in one part"),
        (long_line, "jsonl", "bytes"),
        (many_values, "jsonl", "values"),
        (long_field, "csv", "bytes"),
        (long_row, "csv", "bytes"),
        (manifest, "zip", "manifest.json"),
        (packed_values, "zip", "values"),
        (member, "zip", "limit"),
        (members, "zip", "limit"),
        (understated, "zip", "records.jsonl"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_flood_is_refused(
    read: Read, make: Callable[[Path], None], ending: str, fact: str, tmp_path: Path
) -> None:
    path = tmp_path / f"flood.{ending}"
    make(path)
    content = read(path)
    assert fact in content
    assert path.name in content


def test_the_suite_of_a_bundle_is_as_small_as_any(tmp_path: Path) -> None:
    """A text of 20 MB takes the reader of YAML as many seconds."""
    suite = b"title: " + b"x" * 100_000
    write_bundle(tmp_path / "b.zip", {"suite.yaml": suite, "records.jsonl": b""}, {})
    with pytest.raises(UsageError, match=r"b\.zip: .*100,007 bytes"):
        reproduce_command(tmp_path / "b.zip", tmp_path / "out", None, (), False, 0.0)
    assert not (tmp_path / "out").exists()
