"""What `vipbench run --dry-run --estimate` says."""

from __future__ import annotations

from collections.abc import Sequence

from vipbench.cli.text import clean, columns, duration
from vipbench.engine.outcome import Estimate


def estimate_lines(found: Sequence[Estimate]) -> list[str]:
    """A table of the groups, and the sums."""
    if not found:
        return ["Nothing is to do: no time, no further disk."]
    rows: list[Sequence[object]] = [("row", "cells", "encoding", "training and scoring", "note")]
    for one in found:
        work = "?" if one.work_seconds is None else duration(one.work_seconds)
        rows.append((one.group, one.cells, duration(one.encode_seconds), work, clean(one.note)))
    known = [one for one in found if one.work_seconds is not None]
    time = sum(one.encode_seconds + (one.work_seconds or 0.0) for one in found)
    more = "" if len(known) == len(found) else ", and the rows marked ?"
    return [
        "",
        "To expect, from a few steps and encodings measured now on this machine:",
        *columns(rows),
        f"time    {duration(time)}{more}",
        f"disk    {size(sum(one.cache_bytes for one in found))} in the feature cache, "
        f"{size(sum(one.result_bytes for one in found))} in the results folder",
        f"memory  {size(max(one.memory_bytes for one in found))}",
    ]


def size(count: float) -> str:
    """`120 kB`, `1.2 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
