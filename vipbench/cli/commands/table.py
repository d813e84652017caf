"""`vipbench table`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipbench.cli.commands.disputes import tell_disputes
from vipbench.cli.exit_codes import OK
from vipbench.engine.cluster.run import collect_if_free
from vipbench.errors import unknown
from vipbench.results.records.code import code
from vipbench.results.records.comparable import differences, settings
from vipbench.results.results import folder_table
from vipbench.results.selection import Selection, opened
from vipbench.results.tables import FORMATS, render
from vipbench.text import columns


def table_command(
    folder: Path,
    format: str,
    preset_name: str | None,
    shape: Mapping[str, str | None],
    looks: Mapping[str, Any],
    decimals: int,
    chosen: Selection,
) -> int:
    """Print the folder's table. shape: `rows`, `cols`, `metrics` as given, None where not; looks:
    further fields of a Layout. Raises UsageError, StoreError."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    collect_if_free(folder)
    with opened(folder) as store:
        table = folder_table(store, preset_name, shape, {**looks, "decimals": decimals}, chosen)
        print(render(table, format).rstrip("\n"))
        # Beside the table: its formats are read by programs.
        tell_disputes(store)
    return OK


def superseded_command(folder: Path) -> int:
    """List the superseded records, with what differs from the records that tables show. Raises
    StoreError."""
    with opened(folder) as store:
        records, gone, planned = store.records(history=False), store.superseded(), store.plan()
    keys = {cell.slot: cell.key for cell in planned}
    standing = {record.key: record for record in records if record.key not in gone}
    lines = [
        [
            "key",
            "method",
            "dataset",
            "backbone",
            "shots",
            "seed",
            "accuracy",
            "created",
            "what differs",
        ]
    ]
    for record in records:
        if record.key in gone:
            c, accuracy = record.cell, record.metrics.get("accuracy")
            other = standing.get(keys.get(record.slot) or "")
            versions = [settings(r) | code(r) for r in (record, other) if r is not None]
            why = "; ".join(differences(versions)) or "not yet run with the row's present code"
            why = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", why)
            number = "" if accuracy is None else f"{100 * accuracy:.1f}"
            named = (record.key[:12], c.method, c.dataset, c.backbone, c.shots, c.seed)
            lines.append([*map(str, named), number, record.created, why])
    if len(lines) == 1:
        print(f"{folder} has no superseded records.")
        return OK
    print("\n".join(columns(lines)))
    print(f"\n`vipbench show KEY {shlex.quote(str(folder))}` shows one of them in full.")
    return OK
