"""What a careful reader would ask of a symptom set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from vipbench.symptoms.load import SymptomSet

LEAST = 2  # symptoms of a class
UNLIKE = 2.0  # how many times longer, or more, one class's texts may be than another's


@dataclass(frozen=True)
class Finding:
    """kind: duplicate | leak | too-long | too-few | unlike-lengths | unlike-counts | edited."""

    kind: str
    text: str


def check(
    found: SymptomSet, tokens: Callable[[str], int | None] | None = None, limit: int = 0
) -> list[Finding]:
    """All findings of a set that was read without `strict`.

    tokens: a text's length for the chosen backbone, None where it does not fit at all; limit: the
    most tokens of a text.
    """
    findings = [Finding(_kind(w), w) for w in found.warnings]
    sets = found.symptoms
    for name, texts in sets.items():
        if len(texts) < LEAST:
            findings.append(
                Finding("too-few", f"class '{name}' has {len(texts)}; expected {LEAST} or more")
            )
        for text in texts if tokens is not None else ():
            assert tokens is not None
            if tokens(text) is None:
                findings.append(
                    Finding(
                        "too-long",
                        f"class '{name}': '{text}' is over the {limit} tokens "
                        "that the text tower takes",
                    )
                )
    findings += _unlike(
        {name: mean(len(t.split()) for t in texts) for name, texts in sets.items() if texts},
        "unlike-lengths",
        "words a symptom",
    )
    findings += _unlike(
        {name: float(len(texts)) for name, texts in sets.items() if texts},
        "unlike-counts",
        "symptoms",
    )
    return findings


def _kind(warning: str) -> str:
    if warning.startswith("the symptom "):
        return "duplicate"
    return "edited" if warning.startswith("the file ") else "leak"


def _unlike(values: Mapping[str, float], kind: str, what: str) -> list[Finding]:
    if not values:
        return []
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if values[high] < UNLIKE * values[low]:
        return []
    return [
        Finding(
            kind,
            f"class '{high}' has {values[high]:.3g} {what}, '{low}' {values[low]:.3g}; "
            "a class with more or longer texts can be favoured for that alone",
        )
    ]


def difference(
    a: Mapping[str, Sequence[str]], b: Mapping[str, Sequence[str]]
) -> list[tuple[str, str, str]]:
    """(mark, class, text) of two sets: "-" only in a, "+" only in b, " " in both."""
    rows = []
    for name in dict.fromkeys([*a, *b]):
        old, new = list(a.get(name, ())), list(b.get(name, ()))
        rows += [(" " if t in new else "-", name, t) for t in old]
        rows += [("+", name, t) for t in new if t not in old]
    return rows
