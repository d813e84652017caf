"""How much of a file from somebody else is read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vipbench.errors import UsageError

MIB = 1 << 20
MOST_BYTES = 1024 * MIB  # of a file, unpacked
MOST_RATIO = 200  # unpacked to packed; records shrink to a tenth
FREE = 64 * MIB  # of which the ratio says nothing
MOST_ROW = 32 * MIB  # the scores of 100,000 images and 60 classes
MOST_ROWS = 1_000_000
MOST_COLUMNS = 1_000  # a later version may have more than this one
MOST_VALUES = 4_000_000  # of JSON in a row; the ids, groups and labels of a million images
VALUES_A_BYTE = 4  # of JSON in a file, beyond MOST_VALUES
MOST_DECODED = 2048 * MIB  # at once in a Parquet file; its allocator reserves 1 GiB


class Budget:
    """What may still be read of a file; its size on the disk limits what it may unpack to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._most = min(MOST_BYTES, FREE + MOST_RATIO * path.stat().st_size)
        self._most_values = MOST_VALUES + VALUES_A_BYTE * path.stat().st_size
        self._bytes = self._rows = self._values = 0

    def announced(self, size: int, rows: int = 0) -> None:
        """Raises UsageError where a file says that it holds more than it may."""
        self._check(self._bytes + size, self._most, "bytes unpacked")
        self._check(rows, MOST_ROWS, "rows")

    def row(self, size: int, values: int = 0) -> None:
        """Count a row, or another part that is in memory as a whole. Raises UsageError."""
        self._check(values, MOST_VALUES, "values in one part")
        self._rows += 1
        self._bytes += size
        self._check(size, MOST_ROW, "bytes in one part")
        self.announced(0, self._rows)

    def json(self, text: str) -> Any:
        """The value of a JSON text, of which a byte can become a hundred in memory. Raises
        UsageError, ValueError, RecursionError."""
        found = sum(map(text.count, ",[{"))
        self._values += found
        self._check(found, MOST_VALUES, "values in one part")
        self._check(self._values, self._most_values, "values")
        return json.loads(text)

    def _check(self, found: int, most: int, what: str) -> None:
        if found > most:
            raise UsageError(
                f"'{self._path}' holds {found:,} {what} or more, over the limit of {most:,} for a "
                "file of its size; reading stopped there. Split it into several files"
            )


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """In the block this process can allocate MOST_DECODED beyond what it has: a file may unpack to
    more than it announces. Without effect where the system has no such limit."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST_DECODED
    known = [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([most, *known]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
