"""`vipbench list`: what is registered."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vipbench.cli.exit_codes import OK
from vipbench.cli.terminal import raw
from vipbench.engine.workers.driver import CatalogueEntry, catalogue
from vipbench.errors import unknown
from vipbench.text import clean, columns

KINDS = ("methods", "backbones", "datasets")
VERBOSE = ("name", "kind", "year", "trainable", "needs", "validation", "cost", "paper")
# In this order, and in words.
NEEDS = {
    "text": "text",
    "symptoms": "symptoms",
    "descriptions": "descriptions",
    "images": "images",
    "vit": "ViT",
    "test_images": "all test images",
    "test_views": "views of test images",
    "val": "validation",
}
LEGEND = (
    "kind: TF training-free, TP text prompts, AD adapter on features, MM vision or multimodal "
    "prompts, FT fine-tuning",
    "trainable: parameters at 1 shot with tiny-clip on synthderm (6 classes)",
    "needs: text: a text tower; images: in every step, not encoded once; ViT: a vision "
    "transformer; -: image features alone",
    "validation: images per class at k shots on which the paper tunes constants or picks the "
    "epoch; without them default constants are used",
    "cost: of one cell, on one GPU when the paper appeared",
)


def list_command(
    kind: str | None, plugins_dir: Path | None, format: str, verbose: bool = False
) -> int:
    """Print the catalogue, or one kind of it. Raises UsageError."""
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if format not in ("text", "json"):
        raise unknown("format", format, ("text", "json"))
    everything = catalogue(plugins_dir, verbose)
    entries = [e for e in everything if kind is None or f"{e.kind}s" == kind]
    if format == "json":
        items = [{"kind": e.kind, "name": e.name, "help": e.help, **e.detail} for e in entries]
        print(json.dumps(items, indent=2, ensure_ascii=False))
        return OK
    for chosen in KINDS if kind is None else (kind,):
        _print_kind(chosen, [e for e in entries if f"{e.kind}s" == chosen], verbose)
    return OK


def _print_kind(kind: str, entries: list[CatalogueEntry], verbose: bool) -> None:
    heads = ["name", "kind", "needs", "what"] if kind == "methods" else ["name", "what"]
    if kind == "methods" and verbose:
        heads = list(VERBOSE)
    if any(e.detail.get("plugin") != "vipbench" for e in entries):
        heads.insert(1, "plugin")
    rows = [[_field(entry, head) for head in heads] for entry in entries]
    if sys.stdout.isatty():
        _print_rich(kind, heads, rows)
        return
    if verbose:
        rows.insert(0, heads)
    print(f"{kind}:")
    for line in columns(rows):
        print(f"  {line}")
    if kind == "methods" and verbose:
        print("\n".join(LEGEND))


def _field(entry: CatalogueEntry, head: str) -> str:
    if head == "name":
        return clean(entry.name)
    if head == "what":
        return clean(entry.help)
    if head == "needs":
        needs = set(entry.detail["needs"])
        needs |= {"images"} if entry.detail["inputs"] == "images" else set()
        # Symptoms and descriptions are texts.
        needs |= {"text"} if "symptoms" in needs else set()
        known = [word for need, word in NEEDS.items() if need in needs]
        return clean(", ".join([*known, *sorted(needs - NEEDS.keys())])) or "-"
    if head == "validation":
        policy = str(entry.detail["published_validation"])
        return "-" if policy == "none" else policy
    value = entry.detail.get(head, "")
    if value is None:
        return "-"
    return clean(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _print_rich(kind: str, heads: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=kind, title_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, no_wrap=head == "name", style="bold" if head == "name" else None)
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    Console(file=raw(sys.stdout)).print(table)
