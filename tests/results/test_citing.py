from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.results.samples import record_dict
from vipbench.results.records.record import Record
from vipbench.results.sharing.citations import bibliography, used

COOP = "@article{zhou2022, title = {CoOp}}"


def record(name: str, bibtex: str = "", **more: Any) -> Record:
    value = record_dict(name)
    value["cell"]["method_name"] = name
    value["provenance"]["method"]["bibtex"] = bibtex
    value["provenance"]["backbone"] |= {"citation": more.get("backbone", ""), "licence": "MIT"}
    value["provenance"]["dataset"] = {"citation": more.get("dataset", "")}
    value["data"]["licence"] = more.get("licence", "CC0-1.0")
    return Record.of(value)


def bib(*records: Record) -> str:
    return bibliography(used(records), "@software{vipbench, title = {vipbench}}")


def test_every_source_is_named_once() -> None:
    both = f"{COOP}\n\n@book{{second, title = {{b}}}}"
    text = bib(record("coop", both), record("vip", COOP, dataset="Doe J. Images & more, 50 %."))
    assert text.count("@article{zhou2022,") == 1
    assert re.search("% method coop: .*zhou2022, second\n", text)
    assert re.search("% method vip: .*zhou2022\n", text)
    assert re.search("% backbone toy-clip: .*MIT\n", text)
    assert re.search("% dataset toyderm: .*dataset-toyderm; .*CC0-1.0\n", text)
    assert "note = {Doe J. Images \\& more, 50 \\%.}" in text


def test_two_works_under_one_key_are_kept_apart() -> None:
    text = bib(record("a", COOP), record("b", "@book{zhou2022, title = {another}}"))
    assert re.search("% method b: .*zhou2022-b\n", text)
    assert "@book{zhou2022-b, title = {another}}" in text
    assert "@article{zhou2022, title" in text


def test_a_key_is_the_same_in_another_case() -> None:
    """To BibTeX it is; and the key may stand in the kind of its entry."""
    entries = ("@misc{misc, title = {one}}", "@misc{MISC, title = {another}}")
    text = bib(record("a", entries[0]), record("b", entries[1]), record("c", entries[0]))
    assert re.findall(r"@misc\{(\w+-?\w*), title", text) == ["misc", "MISC-b", "misc-c"][:2]


@given(st.text(max_size=60), st.text(min_size=1, max_size=20), st.text(max_size=30))
def test_a_comment_is_one_line_and_starts_no_entry(entry: str, name: str, licence: str) -> None:
    text = bib(record(name, entry, dataset=entry, licence=licence))
    # What BibTeX sees first are the comments, none of which may hold its @.
    comments = text.partition("\n\n\n")[0].splitlines()
    assert all(line.startswith("% ") and "@" not in line for line in comments)
    keys = re.findall(r"^@\w+\s*\{\s*([^,\s}]+)", text, re.M)
    assert "vipbench" in keys
