"""`vipbench explain`: pages of per-image symptom scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vipbench.cli.commands.predict import CAUTION
from vipbench.cli.exit_codes import OK
from vipbench.engine.explain.explain import explain
from vipbench.engine.explain.page import write
from vipbench.errors import UsageError
from vipbench.text import clean, columns


def explain_command(
    run: Path,
    given: Sequence[str],
    errors: int,
    out: Path,
    key: str | None,
    embed: bool,
    include_paths: bool = False,
) -> int:
    """Write the page or figure, and print what decides. given: image files, and folders, also as
    DATASET=DIR, in which the images of the run's tables are."""
    if out.suffix.lower() not in (".html", ".htm", ".png", ".pdf"):
        raise UsageError(f"-o takes a name that ends in .html, .png or .pdf, got '{out.name}'")
    roots = [text for text in given if _is_root(text)]
    paths = [Path(text) for text in given if text not in roots]
    made = explain(run, paths, errors, key, include_paths, roots)
    write(made, out, bool(paths), embed)
    names = made.cell.data.dataset.class_names
    for one in made.images:
        first, second = one.order[:2]
        truth = "" if one.label is None else f", true {names[one.label]}"
        called = clean(one.name) if one.name == one.shown else f"{one.shown} ({clean(one.name)})"
        print(f"{called}: {names[first]}, runner-up {names[second]}{truth}")
    rows = [("class", "symptom", "decides for", "of these right")]
    for name, some in zip(names, made.deciding, strict=True):
        rows += [(name, clean(text), str(n), str(right)) for text, n, right in some]
    print("\n".join(columns(rows)))
    print(
        f"{len(made.rescued)} of {made.n_test} test images are right here and wrong with class "
        f"names alone, {len(made.lost)} the reverse"
    )
    if made.words:
        nearest = "; ".join(", ".join(f"{w} {d:.3f}" for w, d in row) for row in made.words)
        print(
            f"Nearest of {made.n_words:,} tokens to the context vectors, with distances (they "
            f"seldom mean anything): {nearest}"
        )
    if not made.embeddable(bool(paths), embed):
        print("Images are not embedded: their licence is not known to allow it", file=sys.stderr)
    print(f"Wrote {out}. {CAUTION}")
    return OK


def _is_root(text: str) -> bool:
    return Path(text).is_dir() or (
        not Path(text).exists() and Path(text.rpartition("=")[2]).is_dir()
    )
