"""Records of different code, support sets and texts, made by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.results.samples import entry_of, key_of, planned, record_dict
from vipbench.results.leaderboard.entries import leaderboard
from vipbench.results.leaderboard.gather import Gathered
from vipbench.results.records.code import superseded
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.record import Record
from vipbench.results.tables import comparison
from vipbench.revisions import PRESENT

PARTS = {
    "engine.revision": 5,
    "method.revision": 1,
    "method.code": None,
    "reader.revision": 1,
    "features.revision": 1,
    "sampler.revision": 1,
    "texts": "a" * 64,
}


def of_code(
    method: str, seed: int, parts: Mapping[str, Any], *, value: float = 0.5, **more: Any
) -> Record:
    """A record with `parts` of its key beside PARTS; its place is made of all of them."""
    own = PARTS | dict(parts)
    changed = record_dict(
        method, 4, seed, metrics={"accuracy": value}, key=key_of(method, seed, own, more), **more
    )
    changed["provenance"]["method"] |= {"plugin": "ours", "file": "ours.py"}
    changed["provenance"]["key_parts"] = own
    return Record.of(changed)


@pytest.mark.parametrize(
    "part",
    ["method.code", "method.revision", "engine.revision", "sampler.revision", "reader.revision"],
)
def test_seeds_of_other_code_count_as_not_yet_run(part: str) -> None:
    old = [of_code("vip", seed, {}) for seed in (1, 2, 3)]
    new = of_code("vip", 1, {part: 2}, value=0.9)
    plan = [PlannedCell.of(new, run=2), *planned(old[1:])]
    table = comparison([*old, new], plan)
    entry = entry_of(table, "vip", 4)
    assert (entry.state, entry.mean, entry.n, entry.n_expected) == ("unfinished", None, 1, 3)
    assert any(re.search("vip: 2 .*older", note) for note in table.notes)
    assert superseded([*old, new], plan) == {record.key for record in old}
    # Whichever was made last, the run that was last says what the code is now.
    back = [PlannedCell.of(new), *(PlannedCell.of(r, run=2) for r in old[1:])]
    assert entry_of(comparison([*old[1:], new], back), "vip", 4).n == 2


def test_seeds_from_before_a_part_was_reported_are_of_older_code() -> None:
    new, old = of_code("vip", 1, {}), of_code("vip", 2, {})
    changed = old.to_dict()
    del changed["provenance"]["key_parts"]["reader.revision"]
    plan = [PlannedCell.of(new, run=2), *planned([old])]
    assert entry_of(comparison([new, Record.of(changed)], plan), "vip", 4).n == 1


def test_rows_of_older_revisions_are_marked_once_with_their_commands() -> None:
    records = [of_code("vip", seed, {"sampler.revision": 2}) for seed in (1, 2)]
    records += [of_code(name, seed, {}) for name in ("coop", "probe") for seed in (1, 2)]
    plan = [PlannedCell.of(r, run=2 if r.cell.method == "vip" else 1) for r in records]
    table = comparison(records, plan)
    assert {row.label: table.marks(row.label) for row in table.rows[1:]} == {
        "vip": "", "coop": " §", "probe": " §",
    }  # fmt: skip
    assert table.caption.count("§") == 1
    caption_part = table.caption[table.caption.index("§") :]
    assert "older" in caption_part
    assert "sampler.revision 1, now 2" in caption_part
    assert re.search("coop.*probe", caption_part)
    assert caption_part.count("vipbench run") == 1
    drawn = "Support sets on toyderm were drawn differently, revision of the support sampler"
    assert f"{drawn}: 2 (vip); 1 (coop, probe)" in table.caption


def test_a_table_says_that_this_version_of_vipbench_computes_other_numbers() -> None:
    rows = ("vip", "probe")
    old = [of_code(name, 1, PRESENT | {"engine.revision": 1}) for name in rows]
    (note,) = [n for n in comparison(old, planned(old)).notes if "engine.revision 1" in n]
    assert f"engine.revision 1, here {PRESENT['engine.revision']}" in note
    assert "vip" in note
    assert "probe" in note
    assert "vipbench run" in note
    now = [of_code(name, 1, PRESENT) for name in rows]
    assert not any("revision" in note for note in comparison(now, planned(now)).notes)


def test_a_table_says_that_texts_and_support_sets_differ() -> None:
    records = [of_code("vip", 1, {}), of_code("coop", 1, {"texts": "b" * 64})]
    other = of_code("probe", 1, {}).to_dict()
    other["protocol"]["sampler"] = "coop"
    other["provenance"]["key_parts"].pop("texts")
    caption = comparison([*records, Record.of(other)]).caption
    assert re.search("templates.*toyderm", caption)
    assert f"{'a' * 11} (vip); " in caption
    assert f"{'b' * 11} (coop)" in caption
    assert "nested (vip, coop); coop (probe)" in caption
    assert "differ" not in comparison(records[:1]).caption


def test_a_table_says_that_another_plugin_gave_the_images() -> None:
    records = []
    for method, digest in (("vip", "a"), ("coop", "b")):
        changed = of_code(method, 1, {}).to_dict()
        changed["provenance"]["dataset"] = {"plugin": "ward", "file_sha256": digest * 64}
        records.append(Record.of(changed))
    caption = comparison(records).caption
    assert "plugin 'ward'" in caption


@pytest.mark.parametrize(
    ("policy", "shots", "given", "part"),
    [
        ("k", 4, 6, "toyderm 6 .*12 .*4 shots"),
        ("k", 2, 6, ""),
        ("min(k,4)", 16, 11, "toyderm 11 .*12 .*16 shots"),
        ("min(k,4)", "full", 11, "toyderm 11 .*12 .*full"),
        ("min(k,4)", 16, 12, ""),
        ("k", "full", 6, ""),
        ("full", 16, 6, ""),
        ("none", 16, 0, ""),
    ],
)
def test_a_table_says_where_a_validation_set_is_smaller_than_its_policy(
    policy: str, shots: int | str, given: int, part: str
) -> None:
    value = record_dict("vip", shots)
    value["protocol"]["validation"] = policy
    value["data"]["n_val"] = given
    caption = comparison([Record.of(value)]).caption
    assert ("smaller" in caption) == bool(part)
    assert re.search(part, caption)


def test_validation_sets_are_counted_in_what_shots_are() -> None:
    value = record_dict("vip", 4)
    value["protocol"]["shots_unit"] = "group"
    value["data"] |= {"n_val": 30, "n_val_groups": 9}
    caption = comparison([Record.of(value)]).caption
    assert re.search("toyderm 9 .* 12 ", caption)


def test_the_leaderboard_keeps_code_of_several_folders_apart() -> None:
    records = [of_code("vip", seed, {"method.code": "a" * 64}) for seed in (1, 2)]
    newer = [of_code("vip", seed, {"method.code": "b" * 64}, value=0.9) for seed in (1, 2)]
    newer = [Record.of(r.to_dict() | {"created": "2026-02-02T00:00:00+00:00"}) for r in newer]
    found = leaderboard(Gathered([*newer, *records]))
    assert [(e.bounds["accuracy"].mean, e.older) for e in found] == [(0.9, False), (0.5, True)]
    assert any("ours.py" in note for note in found[1].notes)
