"""Claims as sentences for a paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from vipbench.errors import unknown
from vipbench.results.compare.claims import WARNING, Claim, Claims
from vipbench.results.records.csv import csv_text
from vipbench.results.records.metrics import find_metric
from vipbench.results.stats import POPULATIONS
from vipbench.results.stats.pairing import shot_words
from vipbench.results.tables import escape
from vipbench.results.tables.differences import and_

_COLUMNS = tuple(
    (
        "a b metric datasets backbone shots mean_a mean_b difference low high level population "
        "test p p_corrected family n_seeds n_images n_groups n_datasets"
    ).split()
)


def write_claims(found: Claims, format: str = "text") -> str:
    """The claims as text that ends in a line break. Raises UsageError for an unknown format."""
    if format not in CLAIM_FORMATS:
        raise unknown("format", format, CLAIM_FORMATS)
    return CLAIM_FORMATS[format](found)


def sentence(claim: Claim, found: Claims) -> str:
    """What a paper can say of one comparison: effect, interval, n, corrected p, family."""
    title, scale, unit = _metric(claim.metric)
    interval = claim.interval
    more, size = ("higher" if interval.estimate > 0 else "lower"), abs(interval.estimate)
    shown = claim.p_corrected < 1 - found.level
    start = f"On {_where(claim)}, "
    means = f"{claim.mean_a * scale:.1f}{unit} against {claim.mean_b * scale:.1f}{unit}"
    title = title if title.isupper() else title[:1].lower() + title[1:]
    effect = f"the {title} of {claim.a} was {size * scale:.1f} points {more} than that of {claim.b}"
    if interval.estimate == 0:
        effect = f"the {title} of {claim.a} equalled that of {claim.b}"
    if interval.method == "Hodges–Lehmann":
        effect += " (Hodges–Lehmann estimate over datasets)"
    verdict = "" if shown else ", a difference that these data do not establish"
    alone = ", uncorrected," if len(found.claims) > 1 else ""
    low, high = interval.low * scale, interval.high * scale
    inside = [
        means,
        f"{100 * found.level:g} % confidence interval of the difference{alone} {_signed(low)} to "
        f"{_signed(high)} points for {_population(claim)}",
        _n_words(claim),
        f"{claim.test}, {_p_words(claim.p_corrected)}, {family(found)}",
    ]
    return f"{start}{effect}{verdict} ({'; '.join(inside)})."


def family(found: Claims) -> str:
    """What the p values were corrected over."""
    m = len(found.claims)
    if m == 1:
        return "uncorrected, the only comparison of its family"
    a = found.claims[0].a
    parts = [f"{a} against {and_(_unique(c.b for c in found.claims))}"]
    for name, values in (
        ("metrics", _unique(_metric(c.metric)[0] for c in found.claims)),
        ("shots", _unique(str(c.shots) for c in found.claims)),
        ("datasets", _unique(" + ".join(c.datasets) for c in found.claims)),
        ("backbones", _unique(c.backbone for c in found.claims)),
    ):
        if len(values) > 1:
            parts.append(f"{name} {and_(values)}")
    return f"Holm-corrected over {m} comparisons ({', '.join(parts)})"


def _where(claim: Claim) -> str:
    d = len(claim.datasets)
    place = claim.datasets[0]
    if d > 1 or claim.interval.n_datasets > 1:
        place = f"{d} datasets ({and_(list(claim.datasets))})"
    return f"{place} with {claim.backbone} {shot_words(claim.shots)}"


def _population(claim: Claim) -> str:
    if claim.interval.population == "both" and claim.interval.n_datasets > 1:
        return f"{POPULATIONS['both']} of these datasets"
    return POPULATIONS[claim.interval.population]


def _n_words(claim: Claim) -> str:
    interval, parts = claim.interval, []
    if interval.n_datasets > 1:
        parts.append(f"{interval.n_datasets} datasets")
    if claim.seeds == (0,):
        parts.append("one run each (neither method has seeds)")
    else:
        parts.append(f"{len(claim.seeds)} seed{'s' * (len(claim.seeds) != 1)}")
    images = f"{claim.n_images:,} test images"
    if claim.grouped and interval.n_groups:
        images += f" of {interval.n_groups:,} groups (patients or lesions)"
    parts.append(images)
    shared = "both methods on the same test images"
    if not claim.untrained:
        shared = "both methods on the same support sets and test images"
    elif len(claim.untrained) == 1:
        shared += f", {claim.untrained[0]} without a support set"
    return f"n = {and_(parts)}; {shared}"


def _pairs(claim: Claim) -> str:
    pairs = [
        f"seed {pair.seed}: {pair.only_a} images right by {claim.a} alone, {pair.only_b} by "
        f"{claim.b} alone" + ("" if pair.p is None else f", McNemar mid-{_p_words(pair.p)}")
        for pair in claim.pairs
    ]
    return "; ".join(pairs)


def _text(found: Claims) -> str:
    return "\n".join(map(escape.plain, _lines(found))) + "\n"


def _lines(found: Claims) -> list[str]:
    lines = []
    for claim in found.claims:
        lines += [sentence(claim, found), ""]
    for claim in found.claims:
        if claim.pairs and claim.seeds != (0,):
            place = f"{_where(claim)}, {claim.a} and {claim.b}"
            lines.append(f"Given each trained pair, uncorrected: {place}: {_pairs(claim)}.")
    lines += [n if n.startswith(WARNING) else f"Note: {n}" for n in found.notes]
    lines += [f"Not compared: {reason}." for reason in found.refused]
    return lines


def _escaped(mark: Callable[[str], str]) -> Callable[[Claims], str]:
    def write(found: Claims) -> str:
        return "\n".join(mark(line) if line else "" for line in _lines(found)) + "\n"

    return write


def _latex(found: Claims) -> str:
    lines = [escape.latex(sentence(claim, found)) for claim in found.claims]
    rest = [f"% {escape.latex(line)}" for line in _lines(found)[2 * len(lines) :]]
    return "\n\n".join(lines) + "\n" + "".join(f"{line}\n" for line in rest)


def _csv(found: Claims) -> str:
    rows: list[Sequence[object]] = [_COLUMNS]
    for c in found.claims:
        i = c.interval
        rows.append((
            c.a, c.b, c.metric, list(c.datasets), c.backbone, c.shots, c.mean_a, c.mean_b,
            i.estimate, i.low, i.high, i.level, i.population, c.test, c.p, c.p_corrected,
            len(found.claims), len(c.seeds) if c.seeds != (0,) else 0, c.n_images, i.n_groups,
            i.n_datasets,
        ))  # fmt: skip
    return csv_text(rows)


def _json(found: Claims) -> str:
    value = found.to_dict()
    for claim, one in zip(found.claims, value["claims"], strict=True):
        one["sentence"] = sentence(claim, found)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _metric(name: str) -> tuple[str, float, str]:
    metric = find_metric(name)
    of_class = name.partition(":")[2]
    title = f"{metric.title} for {of_class}" if of_class else metric.title
    return title, (100 if metric.percent else 1), " %" if metric.percent else ""


def _signed(value: float) -> str:
    text = f"{value:.1f}"
    return f"−{text[1:]}" if text.startswith("-") and float(text) else text.lstrip("-")


def _p_words(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {min(p, 1.0):.3f}"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


CLAIM_FORMATS: dict[str, Callable[[Claims], str]] = {
    "text": _text,
    "github": _escaped(escape.markdown),
    "latex": _latex,
    "csv": _csv,
    "json": _json,
}
