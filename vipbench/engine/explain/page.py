"""Explanations to look at: one self-contained HTML page, or a figure (PNG, PDF)."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vipbench import files
from vipbench.engine.explain.explain import Explained, Explanation
from vipbench.errors import UsageError
from vipbench.results.sharing import citations
from vipbench.text import png_url

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;
color:#1b1b1b;background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
.note{background:#f4f1e6;padding:.6rem .8rem;border-left:4px solid #b08900}
.case{display:flex;gap:1.2rem;flex-wrap:wrap;border-top:1px solid #ccc;padding:1rem 0}
.case figure{margin:0;width:13rem}.case img{width:13rem;image-rendering:pixelated}
.none{width:13rem;height:13rem;background:#eee;display:flex;align-items:center;
justify-content:center;text-align:center;color:#555}figcaption{font-size:.85rem}
.bars{flex:1;min-width:22rem}table{border-collapse:collapse;width:100%}
td,th{padding:.12rem .4rem;text-align:left;vertical-align:middle}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{display:inline-block;height:.8rem;background:#2b6cb0}.second .bar{background:#c05621}
.bars table{table-layout:fixed}.bars td:first-child{width:18rem}
.bars td.n,.bars th.n{width:3.6rem}td.b{width:8rem}.wrong{color:#a01818}
@media(max-width:44rem){.bars{min-width:100%}.bars table{table-layout:auto}
.bars col{width:auto!important}
.bars table{width:100%}.bars td:first-child,.bars td.n,.bars th.n{width:auto}td.b{width:3rem}
body{overflow-wrap:anywhere;margin:1rem auto}}
"""
COLUMNS = (
    "<colgroup><col><col style='width:8rem'><col style='width:4.2rem'><col style='width:4.2rem'>"
    "<col style='width:4.2rem'></colgroup>"
)
LIMITS = (
    "Research only, not for clinical use. A cosine says how near an image lies to a text in the "
    "model's own space; it does not show that the model sees what the words mean."
)

PRIVATE = "contains-patient-data: it shows images without a licence to share them; protect it."


def write(made: Explanation, out: Path, own_files: bool, embed: bool) -> None:
    """Write `out`: .html, .png or .pdf. own_files: the images are the user's own; embed: the user
    asked for images whose licence is not known to allow it. Raises UsageError."""
    images = made.embeddable(own_files, embed)
    # Shown because the user asked for it, not because anybody may see them.
    private = images and not made.embeddable(own_files, False)
    kind = out.suffix.lower()
    if kind in (".html", ".htm"):
        files.write(out, "\n".join(_page(made, images, private, own_files)) + "\n")
    elif kind in (".png", ".pdf"):
        from vipbench.engine.explain.figure import save_figure

        words = f"{PRIVATE} " if private else ""
        save_figure(made, out, images, _title(made), f"{words}{credit(made, own_files)} {LIMITS}")
    else:
        raise UsageError(f"-o takes a name that ends in .html, .png or .pdf, got '{out.name}'")


def _title(made: Explanation) -> str:
    cell = made.cell
    shots = {None: "full training set", 0: "no training image"}.get(cell.shots)
    shots = shots or f"{cell.shots} shots, seed {cell.seed}"
    return f"{cell.row.label} on {cell.data.dataset.name} with {cell.backbone.name}, {shots}"


def credit(made: Explanation, own_files: bool) -> str:
    """Source and licence of the images, and what was changed."""
    dataset = made.cell.data.dataset
    if own_files:
        return "Images: files of this page's author, under their own terms."
    url = " (https://creativecommons.org/licenses/by/4.0/)"
    licence = dataset.licence + (url if dataset.licence == "CC BY 4.0" else "")
    source = f"Images: {citations.credit(dataset.citation, licence)}"
    changes = "Changes: scaled for display, converted to RGB PNG; bars and texts are vipbench's."
    return " ".join(f"{source} {changes} {dataset.caption}".split())


def _page(made: Explanation, images: bool, private: bool, own_files: bool) -> Iterator[str]:
    e = html.escape
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    # A page that is passed on can load nothing and run nothing.
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>{e(_title(made))}</title><style>{STYLE}</style></head><body>"
    yield f"<h1>{e(_title(made))}</h1><p class=note>{e(LIMITS)}</p>"
    if private:
        yield f"<p class=note>{e(PRIVATE)}</p>"
    yield f"<p>{e(credit(made, own_files))}</p>"
    yield (
        "<p>Bars: cosine of image and symptom, from the lowest to the highest of the image. "
        "Δ: cosine above the symptom's mean over the test set. "
        "Weight: how much the symptom counts in its class (merge attention).</p>"
    )
    for one in made.images:
        yield from _case(made, one, images)
    yield f"<h2>Which symptoms decide, over {made.n_test} test images</h2>"
    yield (
        "<p>Of the predicted class's symptoms, the one whose weighted cosine lies furthest above "
        "its own mean decides for an image.</p>"
        "<table><tr><th>class<th>symptom<th class=n>decides for<th class=n>of these right</tr>"
    )
    for name, rows in zip(made.cell.data.dataset.class_names, made.deciding, strict=True):
        for text, count, right in rows:
            yield f"<tr><td>{e(name)}<td>{e(text)}<td class=n>{count}<td class=n>{right}</tr>"
    yield "</table><h2>Against class names</h2>"
    yield (
        f"<p>{len(made.rescued)} test images are right here and wrong with class names alone "
        f"(zero-shot), {len(made.lost)} the reverse.</p>"
        f"<details><summary>Right here, wrong with names</summary>{e(', '.join(made.rescued))}"
        f"</details><details><summary>Wrong here, right with names</summary>"
        f"{e(', '.join(made.lost))}</details>"
    )
    if made.words:
        yield "<h2>Words nearest to the learned context vectors</h2>"
        yield (
            "<p class=note>They seldom mean anything: a vector near a word's embedding does not "
            "act like the word. "
            f"Searched among {made.n_words:,} tokens of the backbone's vocabulary, by Euclidean "
            "distance between embeddings.</p><table>"
        )
        for i, words in enumerate(made.words, 1):
            nearest = ", ".join(f"{e(word)} ({distance:.3f})" for word, distance in words)
            yield f"<tr><td>vector {i}<td>{nearest}</tr>"
        yield "</table>"
    yield "</body></html>"


def _case(made: Explanation, one: Explained, images: bool) -> Iterator[str]:
    e, names = html.escape, made.cell.data.dataset.class_names
    if images:
        stream = io.BytesIO()
        fresh = one.image.convert("RGB").copy()
        fresh.info.clear()
        fresh.thumbnail((256, 256))
        fresh.save(stream, format="PNG")
        picture = f'<img alt="{e(one.shown)}" src="{png_url(stream.getvalue())}">'
    else:
        picture = "<div class=none>image not embedded (licence)</div>"
    first, second = one.order[:2]
    truth = ""
    if one.label is not None:
        mark = "" if one.label == first else " class=wrong"
        truth = f"<br>true class: <b{mark}>{e(names[one.label])}</b>"
    yield (
        f"<div class=case><figure>{picture}<figcaption>{e(one.shown)}{truth}<br>decision: "
        f"<b>{e(names[first])}</b> ({one.scores[first]:.2f})<br>runner-up: {e(names[second])} "
        f"({one.scores[second]:.2f})</figcaption></figure><div class=bars>"
    )
    for place, c in enumerate((first, second)):
        yield f"<table class={'second' if place else 'first'}>{COLUMNS}"
        yield f"<tr><th colspan=2>{e(names[c])}"
        yield "<th class=n>cosine<th class=n>Δ<th class=n>weight</tr>"
        yield from _bars(made, one, c)
        yield "</table>"
    if not one.order[2:]:
        yield "</div></div>"
        return
    yield f"<details><summary>All other classes</summary><table>{COLUMNS}"
    for c in one.order[2:]:
        yield f"<tr><th colspan=2>{e(names[c])} ({one.scores[c]:.2f})<th><th><th></tr>"
        yield from _bars(made, one, c)
    yield "</table></details></div></div>"


def _bars(made: Explanation, one: Explained, c: int) -> Iterator[str]:
    low, high = np.nanmin(one.cosines), np.nanmax(one.cosines)
    for k, text in enumerate((made.cell.data.symptoms or ())[c]):
        value = one.cosines[c, k]
        width = 100 * (value - low) / max(high - low, 1e-9)
        above = value - made.mean_cosines[c, k]
        yield (
            f"<tr><td>{html.escape(text)}<td class=b><span class=bar style='width:{width:.0f}%'>"
            f"</span><td class=n>{value:.3f}<td class=n>{above:+.3f}<td class=n>"
            f"{made.weights[c, k]:.2f}</tr>"
        )
