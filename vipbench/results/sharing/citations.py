"""BibTeX and licences of what records were made with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from vipbench.results.records.record import Record

_KEY = re.compile(r"@(\w+)\s*\{\s*([^,\s}]+)\s*,")
_UNSAFE = re.compile(r"[^a-z0-9]+")
# What TeX may get of an entry: accents, special letters, escaped signs, fonts and URLs. Any other
# command may read files or run programs, ^^5c is a backslash, and % hides the brace behind it.
_COMMAND = re.compile(
    r"""\\(?:["'`^~=.&%$#_,/ -]|"""
    r"(?:[uvHtcdbkrijoOlL]|aa|AA|ae|AE|oe|OE|ss|url|emph|textit|textbf|texttt|textsc)(?![A-Za-z]))"
)
_FORBIDDEN = re.compile(r"\\(?:[A-Za-z]+|.?)|[\^%$#@]", re.DOTALL)


@dataclass
class Used:
    """One method, backbone or dataset. entry: BibTeX, or a plain citation, as it was given."""

    kind: str
    name: str
    entry: str = ""
    licence: str = ""
    labels: list[str] = field(default_factory=list)


def used(records: Iterable[Record]) -> list[Used]:
    """What the records' numbers rest on: methods, then backbones, then datasets."""
    found: dict[tuple[str, str], Used] = {}

    def add(kind: str, name: str, entry: Any, licence: Any = "") -> Used:
        item = found.setdefault((kind, name), Used(kind, name))
        item.entry = item.entry or _text(entry)
        item.licence = item.licence or _text(licence)
        return item

    for record in records:
        c, made = record.cell, record.provenance
        method, backbone, dataset = (_part(made, k) for k in ("method", "backbone", "dataset"))
        item = add("method", c.method_name, method.get("bibtex"))
        if c.method not in item.labels:
            item.labels.append(c.method)
        add("backbone", c.backbone, backbone.get("citation"), backbone.get("licence"))
        further = made.get("backbones")
        for one in further if isinstance(further, list) else ():
            if isinstance(one, dict):
                add("backbone", _text(one.get("name")), one.get("citation"), one.get("licence"))
        add("dataset", c.dataset, dataset.get("citation"), record.data.licence)
    order = ("method", "backbone", "dataset")
    return sorted(found.values(), key=lambda u: (order.index(u.kind), u.name))


def bibliography(items: Iterable[Used], program: str) -> str:
    """A .bib file: every entry once, licences and what has none as comments, which BibTeX passes
    over. program: the entry of vipbench itself."""
    entries: dict[str, str] = {}
    comments = []
    keys: dict[str, list[str]] = {}
    for item in [Used("program", "vipbench", program), *items]:
        cited, left = [], []
        for entry in _entries(item):
            key = _key_of(entry)
            if reason := _refused(entry):
                left += [f"{key} is left out, since {reason}:", *entry.splitlines()]
                continue
            if entries.setdefault(key.lower(), entry) != entry:
                # Under one key, in whatever case, BibTeX would drop one of the two.
                place = entry.index(key, entry.index("{"))
                renamed = f"{key}-{_UNSAFE.sub('-', item.name.lower()).strip('-')}"
                entry = entry[:place] + renamed + entry[place + len(key) :]
                key = renamed
                entries.setdefault(key.lower(), entry)
            cited.append(key)
        keys.setdefault(item.kind, []).extend(cited)
        comments += [_comment(item, cited, left), *left]
    # To BibTeX an @ starts an entry wherever it stands.
    listed = [f"% {_line(line)}".replace("@", "(at)") for line in comments]
    return "\n".join([*listed, "", *("\n" + entry for entry in entries.values())]) + "\n"


def credit(citation: str, licence: str | None) -> str:
    """Who is to be credited for data, in a line without gaps."""
    known = citation.strip().rstrip(".")
    source = f"{known}." if known else "No citation is known."
    return f"{source} Licence: {(licence or '').strip().rstrip('.') or 'unknown'}."


def _comment(item: Used, cited: list[str], left: list[str]) -> str:
    unknown = "its citation is below" if left else "no citation is known"
    citation = f"cite {', '.join(cited)}" if cited else unknown
    licence = f"; licence: {item.licence}" if item.licence else ""
    if item.kind in ("backbone", "dataset") and not item.licence:
        licence = "; licence unknown"
    return f"{item.kind} {item.name}: {citation}{licence}"


def _refused(entry: str) -> str:
    """Why an entry may not stand in a file that LaTeX reads, or nothing."""
    plain = _COMMAND.sub("", entry.removeprefix("@"))
    if found := _FORBIDDEN.search(plain):
        return f"it holds {found[0]!r}; only accents and plain text are allowed"
    kind, brace, rest = plain.partition("{")
    if kind.strip().lower() in ("preamble", "string", "comment"):
        return f"(at){kind.strip()} is not a publication"
    depths = list(accumulate((char == "{") - (char == "}") for char in brace + rest))
    return "" if 0 not in depths[:-1] and depths[-1] == 0 else "its braces do not match"


def _entries(item: Used) -> list[str]:
    """The BibTeX entries of what was given; a plain citation becomes one of type misc."""
    text = "".join(c for c in item.entry if c.isprintable() or c == "\n").strip()
    if not text:
        return []
    starts = [match.start() for match in _KEY.finditer(text)]
    if starts and starts[0] == 0:
        ends = [*starts[1:], len(text)]
        return [text[a:b].strip() for a, b in zip(starts, ends, strict=True)]
    key = _UNSAFE.sub("-", f"{item.kind}-{item.name}".lower()).strip("-")
    inner = re.sub(r"[{}\\@^]", "", _line(text))
    for char in "&%#_$":
        inner = inner.replace(char, f"\\{char}")
    return [f"@misc{{{key},\n  note = {{{inner}}},\n}}"]


def _key_of(entry: str) -> str:
    match = _KEY.match(entry)
    assert match is not None  # `_entries` gives nothing else
    return match[2]


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _part(made: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = made.get(name)
    return part if isinstance(part, dict) else {}
