"""How much memory this process and those beside it may take: the machine's, or that of the control
group (cgroup) of the batch job or container in which they run, where that is less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# What is assumed where the system does not say.
UNKNOWN = 4 * 1024**3
# The names of limit and use in both versions of control groups.
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def whole(root: Path = Path("/")) -> int:
    """Bytes that all processes of this job together may take. root: of the file system."""
    limits = [limit for limit, _ in _groups(root)]
    return min([_pages("SC_PHYS_PAGES"), *limits])


def free(root: Path = Path("/")) -> int:
    """Bytes of these that are free."""
    left = [max(0, limit - used) for limit, used in _groups(root)]
    return min([_available(root), *left])


def _available(root: Path) -> int:
    """What the machine has free. Files in memory that can be dropped count as free, as in groups:
    they fill all memory of a machine that has read or written enough."""
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _pages("SC_AVPHYS_PAGES")


def _pages(name: str) -> int:
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    return UNKNOWN


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each control group with a limit around this process, in bytes."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        # A limit holds for everything below; in a container the path may not be visible.
        own = Path(path.lstrip("/"))
        for folder in dict.fromkeys((own, *own.parents)):
            yield from _limit(mount / folder)


def _limit(folder: Path) -> Iterator[tuple[int, int]]:
    for limit, used in _FILES:
        with suppress(OSError, ValueError):  # "max": no limit
            found = int((folder / limit).read_text())
            # Files in memory that can be dropped count as used.
            yield found, int((folder / used).read_text()) - _reclaimable_bytes(folder)


def _reclaimable_bytes(folder: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(("inactive_file ", "total_inactive_file ")):
                return int(line.split()[1])
    return 0
