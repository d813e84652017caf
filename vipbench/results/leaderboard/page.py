"""The leaderboard as one self-contained page.

The page holds its data as JSON, its style and its script; a content security policy lets it load
nothing else and run no other script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.errors import UsageError
from vipbench.results.leaderboard.entries import SHOWN, Entry, leaderboard
from vipbench.results.leaderboard.gather import Folders
from vipbench.results.leaderboard.ranking import Bounds
from vipbench.results.records.comparable import versions
from vipbench.results.records.metrics import METRICS, metric_value
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import is_file_plugin, row_command
from vipbench.results.sharing.privacy import scrub
from vipbench.results.store.submissions import OWN, device, submitter

GENERATOR = "vipbench leaderboard"
SCRIPTS = ("model.js", "curves.js", "provenance.js", "table.js")
# Numbers are kept as whole multiples of this.
UNIT = 1e-5


def render_page(entries: Sequence[Entry], title: str = "Leaderboard") -> str:
    """The page's HTML. Whatever names hold, none of it becomes markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("vipbench.results.leaderboard").joinpath("templates")
    style = folder.joinpath("leaderboard.css").read_text(encoding="utf-8")
    script = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = Environment(
        loader=PackageLoader("vipbench.results.leaderboard"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("leaderboard.html.j2").render(
        title=title,
        generator=GENERATOR,
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        data=Markup(embedded(page_data(entries))),
    )


@dataclass(frozen=True)
class Saved:
    """A leaderboard's file; how many rows and cells it shows, and of how many cells submissions
    differ."""

    path: Path
    rows: int
    cells: int
    disputed: int


def save_leaderboard(folders: Sequence[Path], out: Path, title: str) -> Saved:
    """Write the leaderboard of results folders; see `write_page`. Raises UsageError, StoreError,
    OSError."""
    with Folders(folders) as opened:
        found = opened.gather()
        entries = leaderboard(found)
    if not entries:
        raise UsageError(
            f"there are no records in {', '.join(map(str, folders))}; `vipbench run --out DIR` "
            "creates some"
        )
    try:
        path = write_page(out, render_page(entries, title))
    except FileExistsError as error:
        if error.filename:
            raise
        raise UsageError(str(error)) from None
    cells = sum(len(e.records) + len(e.failed) + len(e.disputed) for e in entries)
    return Saved(path, len(entries), cells, len(found.disputed))


def write_page(folder: Path, page: str) -> Path:
    """Write FOLDER/index.html, or FOLDER itself where it ends in .html, over an older leaderboard
    but over nothing else. Raises FileExistsError, OSError."""
    path = folder if folder.suffix.lower() == ".html" else folder / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and f'content="{GENERATOR}"' not in path.read_text("utf-8", "replace")[:2000]:
        raise FileExistsError(
            f"{path} exists and is not a leaderboard of vipbench; give another folder with -o"
        )
    files.write(path, page)
    return path


def embedded(data: Any) -> str:
    """JSON that can stand inside a <script> element: it can neither end it nor start a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@dataclass
class _Pool:
    """Values that many entries share, each once; entries hold their places."""

    items: list[Any] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def place(self, value: Any) -> int:
        text = json.dumps(value, sort_keys=True)
        if text not in self._places:
            self._places[text] = len(self.items)
            self.items.append(value)
        return self._places[text]


def page_data(entries: Sequence[Entry]) -> dict[str, Any]:
    """What the page's script reads; `templates/model.js` unpacks it. Names stand as they are; out
    of what else a person wrote the paths are taken."""
    pools = {
        name: _Pool() for name in ("datasets", "backbones", "rows", "runs", "commands", "notes")
    }
    lines = [_line(entry, pools) for entry in entries]
    return {
        "unit": UNIT,
        "metrics": [
            {
                "name": m.name,
                "title": m.title,
                "definition": m.definition,
                "percent": m.percent,
                "higher": m.higher_better,
            }
            for m in (METRICS[name] for name in SHOWN)
        ],
        **{name: pool.items for name, pool in pools.items()},
        "entries": lines,
    }


def _line(entry: Entry, pools: dict[str, _Pool]) -> list[Any]:
    first = entry.first
    return [
        entry.section,
        pools["datasets"].place(_dataset(first)),
        pools["backbones"].place(_backbone(first)),
        pools["rows"].place(_row(first, " §" if entry.older else "")),
        first.cell.shots,
        pools["commands"].place(row_command(first)),
        entry.expected,
        [pools["notes"].place(scrub(note)) for note in entry.notes],
        [
            _bounds(entry.bounds.get(name), entry.ranks.get(name), entry.rules.get(name, ""))
            for name in SHOWN
        ],
        [_cell(record, pools) for record in entry.records],
        [[r.key, r.cell.seed, r.error.type if r.error else ""] for r in entry.failed],
        [[_cell(record, pools) for record in records] for records in entry.disputed],
    ]


def _bounds(found: Bounds | None, rank: int | None, rule: str) -> list[Any] | int:
    if found is None:
        return 0
    numbers = [_number(v) for v in (found.mean, found.sd, found.low, found.high)]
    return [*numbers, rank, found.of[:1], rule[:1]]


def _number(value: float | None) -> int | None:
    return None if value is None else round(value / UNIT)


def _cell(record: Record, pools: dict[str, _Pool]) -> list[Any]:
    run = {**scrub(versions(record)), "device": device(record)}
    if submitter(record) != OWN:
        run["submitter"] = submitter(record)
    return [
        record.key,
        record.cell.seed,
        pools["runs"].place(run),
        record.created,
        *(_number(metric_value(record.metrics, name)) for name in SHOWN),
    ]


def _dataset(record: Record) -> dict[str, Any]:
    d = record.data
    return {
        "name": record.cell.dataset,
        "source": record.part("dataset").get("source"),
        "plugin": _plugin(record, "dataset"),
        "fingerprint": d.fingerprint,
        "classes": d.class_names,
        "counts": {"train": d.train_counts, "val": d.val_counts, "test": d.test_counts},
        "licence": d.licence,
        "caption": scrub(d.caption),
    }


def _backbone(record: Record) -> dict[str, Any]:
    part = record.part("backbone")
    return {
        "name": record.cell.backbone,
        "fingerprint": part.get("fingerprint"),
        "plugin": _plugin(record, "backbone"),
        "licence": part.get("licence"),
    }


def _row(record: Record, mark: str) -> dict[str, Any]:
    part = record.part("method")
    return {
        "label": f"{record.cell.method}{mark}",
        "name": record.cell.method_name,
        "kind": str(part.get("kind") or "–"),
        "revision": part.get("revision"),
        "needs": sorted(record.needs),
        "plugin": _plugin(record, "method"),
        "file_plugin": is_file_plugin(record),
        "hparams": scrub(record.hparams),
        "recipe": scrub(record.recipe),
        "protocol": scrub(record.protocol.model_dump()),
        "symptoms": record.data.symptoms_sha256 if "symptoms" in record.needs else None,
        "support": [record.data.n_support, record.data.n_val],
    }


def _plugin(record: Record, name: str) -> dict[str, Any]:
    part = record.part(name)
    return {k: part.get(k) for k in ("plugin", "version", "file_sha256") if part.get(k)}
