"""How people spell splits, labels and patient ids: which spellings are one, which stand for nothing
and which are lists. Texts alone; no file is read here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validate", "validation", "dev", "devel", "development"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
# What people add to a split's name: train_set, images-test, Training Data.
_FILLERS = r"(?:sets?|data|datasets?|splits?|images?|imgs?|pictures|pics|files?|folders?|samples)"
# What stands for an empty cell: pandas' own list, in any case.
_MISSING = {"", "nan", "-nan", "none", "null", "na", "n/a", "n.a.", "<na>", "#na", "#n/a", "nat"}
# What else people put where they have nothing: -, --, ?, ??, …
_NOTHING = re.compile(r"[-‐-―−?._]+")
# Characters without a width of their own beside those of category Cf.
_INVISIBLE = {"\u034f", "\u115f", "\u1160", "\u2800", *map(chr, range(0xFE00, 0xFE10))}
_LOOK_ALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУХЁавеѕіјкорсухһԁԛԝёΑΒΕΖΗΙΚΜΝΟΡΤΥΧονıɑɡ‐‑‒–—―−‘’ʼ′ʹ“”″⁄∕",
    "abesijkmhopctyxëabesijkopcyxhdqwëabezhikmnoptyxoviag-------'''''\"\"\"//",
)
_DECIMAL = re.compile(r"[+-]?\d+(?:[.,]0*|\.\d+)?", re.ASCII)
_POWER = re.compile(r"[+-]?\d(?:\.\d+)?[eE]\+?\d\d?", re.ASCII)
_VECTOR = re.compile(r"[01](?:\.0*)?(?:[\s,;|]+[01](?:\.0*)?)+", re.ASCII)
_MARKS = re.compile(r"[,，、·/\\+&#:~\r\n]|\s(?:and|or|with|plus|und|et|y|e)\s", re.IGNORECASE)


def split_of(text: str) -> str | None:
    """ "train", "val" or "test" for a split's name as people write it (`Training`, `test_set`,
    `dev`, `images-val`); None for another word."""
    word = clean(text).casefold()
    word = re.sub(rf"^{_FILLERS}[\s_.-]+", "", word)
    word = re.sub(rf"[\s_.-]*{_FILLERS}$", "", word)
    return _SPLIT_OF.get(word)


def clean(text: str) -> str:
    """`text` without characters that nobody sees: NFKC, single plain spaces, none at the ends."""

    def visible(char: str) -> bool:
        kind = unicodedata.category(char)
        return char.isspace() or (kind not in ("Cf", "Cc") and char not in _INVISIBLE)

    shown = unicodedata.normalize("NFKC", "".join(filter(visible, text)))
    return " ".join("".join(filter(visible, shown)).split())


def skeleton(text: str) -> str:
    """The same for texts that a reader takes for one: case, underscores, dashes and quotes of other
    forms, letters of other alphabets that look like Latin ones."""
    return clean(text).replace("_", " ").translate(_LOOK_ALIKES).casefold()


def alike(first: str, second: str) -> str:
    """Why two texts look alike, for a message: the characters of `second` that are none of
    `first`, by name; "" where only case or underscores differ."""
    strange = [c for c in dict.fromkeys(second) if c not in first and ord(c) > 127]
    named = [f"U+{ord(c):04X} {unicodedata.name(c, 'without a name')}" for c in strange[:3]]
    return f" (the second holds {', '.join(named)})" if named else ""


def missing(text: str) -> bool:
    """Whether a cell is empty, or says that it is (`nan`, `None`, `N/A`, `-`, `?`, ...)."""
    word = clean(text).casefold()
    return word in _MISSING or _NOTHING.fullmatch(word) is not None


def number(text: str) -> str | None:
    """The plain form of a number: `3` for `0003`, `3.0`, `3,0` and `3e0`; None for other texts."""
    word = clean(text)
    if _POWER.fullmatch(word):
        word = format(Decimal(word), "f")
    elif not _DECIMAL.fullmatch(word):
        return None
    whole, _, part = word.lstrip("+-").replace(",", ".").partition(".")
    part = part.rstrip("0")
    plain = (whole.lstrip("0") or "0") + (f".{part}" if part else "")
    return f"-{plain}" if word[0] == "-" and plain != "0" else plain


def column_key(text: str) -> str:
    """Equal for spellings of one column's name."""
    return clean(text).casefold()


def label_key(text: str) -> str:
    """Equal for spellings of one label."""
    return number(text) or clean(text)


def group_key(text: str) -> str:
    """Equal for spellings of one patient's or lesion's id: case and the leading zeros of its last
    number do not count (`P007`, `p7`)."""
    plain = number(text)
    if plain is not None:
        return plain
    word = clean(text).casefold()
    ends = re.fullmatch(r"(.*\D)(\d+)", word, re.ASCII)
    return word if ends is None else ends[1] + (ends[2].lstrip("0") or "0")


@dataclass(frozen=True)
class Spelled:
    """of: each text -> the spelling that stands for it. merged: spellings that were taken as one,
    each list in order of length."""

    of: dict[str, str]
    merged: list[list[str]]


def one_spelling(texts: Iterable[str], key: Callable[[str], str]) -> Spelled:
    """One spelling for the texts of each key, without invisible characters: where they are several,
    the plain number or the shortest. It does not depend on the order of the texts."""
    every: dict[str, set[str]] = {}
    for text in texts:
        every.setdefault(key(text), set()).add(text)
    of: dict[str, str] = {}
    merged = []
    for spellings in every.values():
        shown = min(map(clean, spellings), key=lambda text: (len(text), text))
        if len(spellings) > 1:
            shown = number(shown) or shown
        of |= dict.fromkeys(spellings, shown)
        if len(spellings) > 1:
            merged.append(sorted(spellings, key=lambda text: (len(text), text)))
    return Spelled(of, sorted(merged))


def shown_apart(texts: Sequence[str]) -> str:
    """Spellings side by side, such that invisible differences can be seen."""
    escaped = len(set(map(clean, texts))) < len(texts)
    return " and ".join(ascii(text) if escaped else f"'{text}'" for text in texts[:4])


def label_list(text: str) -> list[str] | None:
    """The parts of a label that is written as a list (`a|b`, `a;b`, `['a', 'b']`, `[1, 0]`,
    `0 1 0`); None for a single label."""
    word = clean(text)
    ends = word[:1] + word[-1:]
    bracketed = ends in ("[]", "{}") or (ends == "()" and "," in word)
    inner = word[1:-1] if bracketed else word
    if _VECTOR.fullmatch(inner):
        return re.split(r"[\s,;|]+", inner)
    if not bracketed and "|" not in word and ";" not in word:
        return None
    marks = r"[,;|]" if bracketed else r"[;|]"
    return [part for raw in re.split(marks, inner) if (part := raw.strip(" '\""))]


def label_lists(labels: Collection[str]) -> dict[str, list[str]]:
    """The labels that are lists -> their parts. Commas, slashes, `+ & # : ~` and a word for "and"
    separate only where all parts are labels of their own, or stand in another order in a second
    label."""
    found = {label: parts for label in labels if (parts := label_list(label)) is not None}
    single = {skeleton(label) for label in labels}
    orders: dict[tuple[str, ...], list[str]] = {}
    for label in labels:
        parts = [skeleton(part) for part in _MARKS.split(label)]
        if label in found or len(parts) < 2 or not all(parts):
            continue
        orders.setdefault(tuple(sorted(parts)), []).append(label)
        if single.issuperset(parts):
            found[label] = _MARKS.split(label)
    for same in orders.values():
        if len(same) > 1:
            found |= {label: _MARKS.split(label) for label in same}
    return found
