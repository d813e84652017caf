"""What a table must say beside its numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vipbench.results.records.comparable import draw, protocol, spread, versions
from vipbench.results.records.protocol_names import (
    HARMONIC,
    PLACE_FIELDS,
    SETTINGS,
    derived,
    protocol_sentences,
    settings_text,
    split_part,
)
from vipbench.results.store.submissions import OWN, submitter
from vipbench.results.tables.differences import (
    and_,
    by_value,
    older_words,
    outdated_words,
    shared_words,
    short_validation,
)
from vipbench.results.tables.table import Column, Row, Table, metric_scale, metric_title

if TYPE_CHECKING:
    from vipbench.results.records.cells import Cells

_MOST_NAMED = 4


def with_words(table: Table, cells: Cells, title: str | None = None) -> Table:
    """The table with its caption and notes."""
    caption = _caption(table, cells, title)
    lead = ". ".join([*([title.rstrip(".")] if title else []), _subject(table, cells)]) + "."
    return replace(
        table,
        caption=caption,
        lead=lead,
        notes=tuple(_notes(table, cells)),
        older=tuple(cells.older),
    )


def figure_words(table: Table, cells: Cells, title: str | None, shape: str) -> str:
    """The caption and notes of a figure of the table: shape "curves" or "bars"."""
    state = {"curves": "A gap", "bars": "–"}[shape]
    notes = [
        f"{state}: not all planned seeds have a result." if "not all planned" in note else note
        for note in _notes(table, cells)
    ]
    return " ".join([_caption(table, cells, title, shape), *notes])


def _caption(table: Table, cells: Cells, title: str | None, shape: str = "table") -> str:
    done = cells.done()
    sentences = [title.rstrip(".")] if title else []
    sentences.append(_subject(table, cells))
    seeds = _seeds(table, cells)
    if drawn := _DRAWN.get(shape):
        swaps = {"±": "and, as {}, ±", "in brackets": "as {}", "In brackets": "As {}"}
        for old, new in swaps.items():
            seeds = seeds.replace(old, new.format(drawn))
    sentences += [seeds, _shots(table, cells, shape)]
    sentences += protocol_sentences([record for _, record in done])
    settings = settings_text([record for _, record in done])
    if settings:
        sentences.append(f"Protocol: {settings}")
    sentences += [short_validation(record for _, record in done), *shared_words(cells)]
    if "majority" in table.kinds() and shape != "curves":
        majority = "The majority row always predicts the most frequent class of the training split"
        sentences.append(majority.replace("row", "line") if shape == "bars" else majority)
    made_with = sorted({str(record.provenance.get("vipbench", "?")) for _, record in done})
    if made_with:
        sentences.append(f"Made with vipbench {and_(made_with)}")
    sentences += older_words(cells)
    # A dataset's own sentence ends as it likes.
    own = dict.fromkeys(record.data.caption for _, record in done if record.data.caption)
    text = ". ".join(sentence for sentence in sentences if sentence) + "."
    return " ".join([text, *(sentence for sentence in own if sentence)])


def _subject(table: Table, cells: Cells) -> str:
    titles = [metric_title(name) for name in table.metrics()]
    datasets = list(dict.fromkeys(cell.dataset for cell in cells.planned))
    backbones = list(dict.fromkeys(cell.backbone for cell in cells.planned))
    sizes = {cell.dataset: record for cell, record in cells.done()}
    named = [
        f"{name} ({sizes[name].metrics['n']} test images, "
        f"{len(sizes[name].data.class_names)} classes)"
        if name in sizes
        else name
        for name in datasets
    ]
    unit = " (%)" if any(metric_scale(name) == 100 for name in table.metrics()) else ""
    return (
        f"{and_(titles)}{unit} on {and_(named)} with backbone{'s' * (len(backbones) > 1)} "
        f"{and_(backbones)}"
    )


def _seeds(table: Table, cells: Cells) -> str:
    seeds = sorted({cell.seed for cell in cells.possible() if cell.shots != 0})
    if not seeds:
        return _IMAGES if table.spread in ("ci-images", "ci-both") else ""
    n = f"n = {table.usual_n}"
    if table.usual_n == 1 and len(seeds) == 1:
        given = f"One run each, {n}, seed {seeds[0]}"
        given += ": no spread can be given" if table.spread == "sd" else ""
        return f"{given}. {_IMAGES}" if table.spread == "ci-images" else given
    listed = ", ".join(map(str, seeds)) if len(seeds) <= 20 else f"{seeds[0]}, …, {seeds[-1]}"
    over = f"{n} seeds ({listed})"
    if table.usual_n != len(seeds):
        over = f"{n} of the seeds {listed}, or as many as an entry states"
    drawn = any(cell.shots not in (0, "full") for cell in cells.possible())
    own = ", each with its own support set" if drawn else ""
    return _SPREAD[table.spread].format(over=f"{over}{own}")


_IMAGES = (
    "In brackets 95 % confidence intervals by bootstrap over test images, by patient or lesion "
    "where the data name them: for new test images, these trained models"
)
_SPREAD = {
    "sd": "Mean ± sample standard deviation over {over}",
    "none": "Mean over {over}",
    "ci-seeds": "Mean over {over}; in brackets its 95 % confidence interval by the t distribution: "
    "for new support sets, these test images; none for a single run",
    "ci-images": "Mean over {over}. " + _IMAGES,
    "ci-both": "Mean over {over}; in brackets its 95 % confidence interval by the t distribution, "
    "with the variance over seeds and over test images (by patient or lesion where the data name "
    "them): for new support sets and new test images; for runs without seeds, new test images",
}

# What a table has in brackets a figure draws.
_DRAWN = {"curves": "a band (at 0 shots a line)", "bars": "a black line"}


def _shots(table: Table, cells: Cells, shape: str = "table") -> str:
    shots = {cell.shots for cell in cells.possible()}
    parts: list[Column | Row] = [*table.columns, *table.rows]
    shown = any(part.shots is not None for part in parts) and shape != "bars"
    texts = []
    if shown and shots - {0, "full"}:
        where = "Rows are" if any(row.shots is not None for row in table.rows) else "Columns are"
        where = "Against" if shape == "curves" else where
        texts.append(f"{where} shots, training images per class")
    if not shown:
        one = sorted(shots - {0}, key=str)
        texts += [
            "trained on the whole training split"
            if k == "full"
            else f"{k} training images per class"
            for k in one
        ]
    if "full" in shots and shown:
        texts.append("full: the whole training split")
    if 0 in shots:
        if shown:
            texts.append("0: no training image, one run without seed")
        elif names := dict.fromkeys(
            c.method for c in cells.possible() if c.shots == 0 and c.seed == 0
        ):
            texts.append(f"no training image for {and_(list(names))}: one run without seed")
    for name in dict.fromkeys(part.dataset for part in parts):
        if name is not None and derived(name) and split_part(name)[1] != HARMONIC:
            texts.append(f"{name}: the unweighted mean of their means")
    text = "; ".join(texts)
    return text[:1].upper() + text[1:]


def _notes(table: Table, cells: Cells) -> list[str]:
    notes = []
    states = [entry.state for line in table.entries for entry in line]
    if "unfinished" in states:
        notes.append("–: not all planned seeds have a result; in brackets, how many do.")
    if "transductive" in table.kinds():
        notes.append(
            "‡: the method sees all test images at once (transductive) and is not ranked with the "
            "others."
        )
    if "views" in table.kinds():
        both = " too" if "transductive" in table.kinds() else ""
        notes.append(
            f"‡{both}: the method scores several views of each test image and is not ranked with "
            "the others."
        )
    if saw := table.saw():
        notes.append(
            f"†: the texts were written from {and_(list(map(str, saw)))} labelled training images "
            f"per class, more than the shots of the entry; such entries are ranked only among "
            f"themselves."
        )
    notes += [f"{sentence}." for sentence in outdated_words(cells)]
    notes += [
        *_handed_in(cells),
        *_record_notes(cells),
        *_failed(cells),
        *_impossible(cells),
        *_undefined(table, cells),
    ]
    notes += [*_unequal_seeds(cells), *_mixed(cells), *_left_out(cells)]
    return notes


def _handed_in(cells: Cells) -> Iterable[str]:
    """Whose results are not of this folder's own runs, and which cannot be checked."""
    names: dict[str, dict[str, None]] = {}
    unverified: dict[str, None] = {}
    for cell, record in cells.done():
        if (name := submitter(record)) != OWN:
            names.setdefault(name, {})[cell.method] = None
        if record.provenance.get("unverified"):
            unverified[cell.method] = None
    for name, labels in names.items():
        yield f"{and_(list(labels))}: results submitted by {name}, not run here."
    if unverified:
        yield f"{and_(list(unverified))}: metrics not verified, since their scores are missing."


def _record_notes(cells: Cells) -> Iterable[str]:
    """What records say of their own settings, and the run of its rows, once for all methods
    that have it."""
    methods_by_note: dict[str, dict[str, None]] = {}
    for cell, record in cells.done():
        for note in (*record.notes, *([cell.note] if cell.note else [])):
            methods_by_note.setdefault(note, {})[cell.method] = None
    for note, labels in methods_by_note.items():
        yield f"{and_(list(labels))}: {note.rstrip('.')}."


def _failed(cells: Cells) -> Iterable[str]:
    failed: dict[str, list[str]] = {}
    for cell in cells.possible():
        record = cells.record_of(cell)
        if record is not None and record.error is not None:
            failed.setdefault(cell.method, []).append(record.error.type)
    for label, kinds in failed.items():
        what = and_(list(dict.fromkeys(kinds)))
        yield f"{label}: {_count(len(kinds), 'cell')} failed ({what}); the records say why."


def _impossible(cells: Cells) -> Iterable[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in cells.planned:
        if cell.status == "impossible":
            places = reasons.setdefault((cell.method, cell.reason or "no reason given"), [])
            place = f"{cell.dataset}, {cell.backbone}, {_shot_word(cell.shots)}"
            if place not in places:
                places.append(place)
    for (label, reason), places in reasons.items():
        more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
        where = "; ".join(places[:_MOST_NAMED]) + more
        yield f"{label} cannot be run ({where}): {reason.rstrip('.')}."


def _undefined(table: Table, cells: Cells) -> Iterable[str]:
    metrics = [(name.partition(":")[0], metric_title(name)) for name in table.metrics()]
    left: dict[tuple[str, str], None] = {}
    for cell, record in cells.done():
        for name in record.metrics.get("left_out") or ():
            left[cell.dataset, str(name)] = None
    if left and any(name in ("auroc", "auprc") for name, _ in metrics):
        names = "; ".join(f"{dataset}: {name}" for dataset, name in left)
        yield (
            f"AUROC and AUPRC leave out classes that are not in the test split, or are its only "
            f"class ({names})."
        )
    for name, title in metrics:
        if any(record.metrics.get(name) is None for _, record in cells.done()):
            yield f"{title} is undefined for some records and shown as –."


def _unequal_seeds(cells: Cells) -> Iterable[str]:
    places: dict[Any, dict[str, list[int]]] = {}
    for cell in cells.possible():
        if cell.shots != 0:
            place = (cell.dataset, cell.backbone, cell.shots)
            places.setdefault(place, {}).setdefault(cell.method, []).append(cell.seed)
    seeds = {tuple(sorted(own)) for by_method in places.values() for own in by_method.values()}
    if any(
        len({tuple(sorted(own)) for own in by_method.values()}) > 1 for by_method in places.values()
    ):
        sets = "; ".join(", ".join(map(str, own)) for own in sorted(seeds))
        yield f"Methods were run with unequal seeds ({sets}): their means are not strictly paired."


def _mixed(cells: Cells) -> Iterable[str]:
    done = cells.done()
    # How support sets were drawn is stated per dataset, see `shared_words`.
    drawn = {name for _, record in done for name in draw(record)}
    settings = (
        (
            cell.method,
            {k: v for k, v in protocol(record).items() if k not in (*PLACE_FIELDS, *drawn)},
        )
        for cell, record in done
    )
    for name, values in spread(settings).items():
        yield f"Settings differ in {SETTINGS.get(name, name)}: {by_value(values)}."
    for name, values in spread((cell.method, versions(record)) for cell, record in done).items():
        yield f"Records differ in {name}: {and_(list(values))}."
    for cell_label, files in _code(cells).items():
        yield f"{cell_label}: records of {len(files)} versions of its plugin ({and_(files)})."


def _code(cells: Cells) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for cell, record in cells.done():
        method = record.provenance.get("method")
        if isinstance(method, dict):
            text = f"{method.get('version')}, file {str(method.get('file_sha256'))[:12]}"
            versions_of = found.setdefault(cell.method, [])
            if text not in versions_of:
                versions_of.append(text)
    return {label: texts for label, texts in found.items() if len(texts) > 1}


def _left_out(cells: Cells) -> Iterable[str]:
    if not cells.left_out:
        return
    slots = {cell.slot for cell in cells.planned}
    older = sum(record.slot in slots for record in cells.left_out)
    if older:
        show = shlex.join(["vipbench", "table", cells.folder or "DIR", "--superseded"])
        yield (
            f"{_count(older, 'record')} of the same cells under earlier settings "
            f"{'is' if older == 1 else 'are'} not shown. `{show}` lists "
            f"{'it' if older == 1 else 'them'}."
        )
    others = len(cells.left_out) - older
    if others:
        are = "is" if others == 1 else "are"
        yield f"{_count(others, 'record')} of other cells {are} not shown."


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _shot_word(shots: int | str) -> str:
    return "full" if isinstance(shots, str) else _count(shots, "shot")
