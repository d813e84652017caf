"""The leaderboard as data: who is compared with whom, and which places they share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results.samples import key_of, make, planned_cell, record_dict, scored
from vipbench.results.leaderboard.entries import Entry, leaderboard
from vipbench.results.leaderboard.gather import Folders, Gathered
from vipbench.results.leaderboard.page import page_data, render_page, write_page
from vipbench.results.leaderboard.ranking import Bounds, bounds, image_bounds, ranks
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import run_command
from vipbench.results.sharing.privacy import scrub
from vipbench.results.stats.intervals import seeds_interval
from vipbench.results.store.store import Collection, Store
from vipbench.results.store.submissions import submitted_by


def entries(*records: Record, plan: Any = ()) -> list[Entry]:
    return leaderboard(Gathered(list(records), plan=list(plan)))


def seeds(method: str, values: list[float], **more: Any) -> list[Record]:
    made = [
        make(method, seed=i + 1, metrics={"accuracy": v, "macro_f1": v}, **more)
        for i, v in enumerate(values)
    ]
    return made


def changed(method: str, value: float, **parts: dict[str, Any]) -> Record:
    ranked = record_dict(method, metrics={"accuracy": value})
    for name, part in parts.items():
        ranked[name] = ranked[name] | part
    return Record.of(ranked)


def test_the_interval_is_that_of_the_statistics() -> None:
    values = np.array([0.6, 0.65, 0.72])
    mine, theirs = bounds(values), seeds_interval(values)
    assert (mine.mean, mine.low, mine.high) == pytest.approx(
        (theirs.estimate, theirs.low, theirs.high), abs=1e-12
    )
    assert mine.sd == pytest.approx(values.std(ddof=1))
    # One number, or one and the same, tells no interval.
    assert bounds(np.array([0.6])).low is None
    assert (bounds(np.array([0.6, 0.6])).sd, bounds(np.array([0.6, 0.6])).low) == (0.0, None)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.none() | st.floats(0, 0.3)), min_size=1, max_size=12),
    st.booleans(),
)
def test_a_rank_counts_those_that_are_significantly_better(
    pairs: list[tuple[float, float | None]], higher: bool
) -> None:
    given_ = [
        Bounds(m, 3) if half is None else Bounds(m, 3, 0.1, m - half, m + half) for m, half in pairs
    ]

    def beats(a: Bounds, b: Bounds) -> bool:
        if a.low is None or b.low is None or a.high is None or b.high is None:
            return False
        return a.low > b.high if higher else a.high < b.low

    def place(mine: Bounds) -> int:
        return 1 + sum(beats(other, mine) for other in given_)

    def as_good(other: Bounds, mine: Bounds) -> bool:
        better = other.mean >= mine.mean if higher else other.mean <= mine.mean
        return other.low is not None and better

    expected = [
        None if mine.low is None else max(place(o) for o in given_ if as_good(o, mine))
        for mine in given_
    ]
    assert ranks(given_, higher) == expected


def test_overlapping_methods_share_a_rank_and_others_do_not() -> None:
    found = entries(
        *seeds("clear", [0.9, 0.901, 0.902]),
        *seeds("close", [0.899, 0.9, 0.903]),
        *seeds("behind", [0.5, 0.51, 0.52]),
    )
    ranked = {e.first.cell.method: e.ranks["accuracy"] for e in found}
    assert ranked == {"clear": 1, "close": 1, "behind": 3}
    assert [e.first.cell.method for e in found] == ["clear", "close", "behind"]


def test_a_wide_interval_lifts_nobody_over_a_better_mean() -> None:
    found = entries(
        *seeds("best", [0.6, 0.6001, 0.6002]),
        *seeds("close", [0.55, 0.551, 0.552]),
        *seeds("loose", [0.45, 0.54, 0.65]),
    )
    ranked = {e.first.cell.method: e.ranks["accuracy"] for e in found}
    assert ranked == {"best": 1, "close": 2, "loose": 2}


def test_only_like_is_compared_with_like() -> None:
    other_images = [
        Record.of(
            r.to_dict() | {"key": key_of(r.key), "data": r.to_dict()["data"] | {"fingerprint": "x"}}
        )
        for r in seeds("other-images", [0.9, 0.9, 0.91])
    ]
    found = entries(
        *seeds("a", [0.5, 0.51, 0.52]),
        *seeds("b", [0.8, 0.81, 0.82]),
        *seeds("elsewhere", [0.9, 0.91, 0.92], backbone="other"),
        *other_images,
    )
    ranked = {e.first.cell.method: e.ranks.get("accuracy") for e in found}
    assert ranked == {"a": 2, "b": 1, "elsewhere": None, "other-images": None}


def test_what_saw_the_test_images_stands_apart() -> None:
    ranked = record_dict("transclip")
    ranked["provenance"]["method"]["needs"] = ["test_images"]
    picked = changed("picked", 0.99, protocol={"selection": "best_test"})
    found = entries(make("vip"), Record.of(ranked), picked)
    assert {e.first.cell.method: e.section for e in found} == {
        "vip": "methods",
        "transclip": "transductive",
        "picked": "test-selected",
    }
    assert not any(e.ranks for e in found)


def test_an_unfinished_entry_has_no_number() -> None:
    three = seeds("vip", [0.5, 0.6, 0.7])
    plan = [PlannedCell.of(r) for r in three]
    (whole,) = entries(*three, plan=plan)
    (part,) = entries(*three[:2], plan=plan)
    (failed,) = entries(*three[:2], make("vip", seed=3, error="ValueError"), plan=plan)
    assert whole.done
    assert whole.bounds["accuracy"].mean == pytest.approx(0.6)
    for entry in (part, failed):
        assert (entry.done, entry.bounds, len(entry.records), entry.expected) == (False, {}, 2, 3)
    assert re.search("1 .*failed", str(failed.notes))
    # The plan of the same label under other settings asks nothing of these records.
    keys = [key_of("other", i) for i in range(3)]
    other = [planned_cell(key, *r.slot) for key, r in zip(keys, three, strict=True)]
    assert entries(*three[:2], plan=other)[0].done


def test_other_settings_of_a_label_are_another_line() -> None:
    one = changed("vip", 0.5)
    other = Record.of(
        record_dict("vip", metrics={"accuracy": 0.6}, key="f" * 64) | {"hparams": {"n_ctx": 8}}
    )
    assert len(entries(one, other)) == 2


def test_another_protocol_and_other_versions_are_reported() -> None:
    odd = changed("odd", 0.5, protocol={"views": 3})
    torch = [
        Record.of(r.to_dict() | {"provenance": r.provenance | {"torch": f"2.1{i}.0"}})
        for i, r in enumerate(seeds("mixed", [0.5, 0.6]))
    ]
    found = {e.first.cell.method: e.notes for e in entries(make("a"), make("b"), odd, *torch)}
    assert found["a"] == []
    assert re.search(r"protocol.*views: per-epoch \| 3", *found["odd"])
    assert re.search(r"torch: 2\.10\.0 \| 2\.11\.0", *found["mixed"])


def test_folders_are_read_together(tmp_path: Path) -> None:
    record, predictions = scored(1)
    nudged = Predictions(
        predictions.ids, predictions.groups, predictions.labels, -predictions.scores
    )
    from vipbench.results.records.metrics import compute_metrics

    names = record.data.class_names
    metrics = compute_metrics(nudged.labels, nudged.scores, names)
    theirs = Record.of(record.to_dict() | {"metrics": metrics})
    with Store(tmp_path / "a") as store:
        store.add(record, predictions)
        store.add(*scored(2))
        store.add(make("coop", error="ValueError"))
    with Collection(tmp_path / "b") as other:
        other.submit([(submitted_by(theirs, "anna"), nudged), scored(2), (make("coop"), None)])
    with Folders([tmp_path / "a", tmp_path / "b"]) as folders:
        found = folders.gather()
        assert found.disputed.keys() == {record.key}
        assert {r.key: r.ok for r in found.records} == {
            scored(2)[0].key: True,
            make("coop").key: True,
        }
        assert found.predictions(scored(2)[0].key) is not None
        (vip,) = (e for e in leaderboard(found) if e.first.cell.method == "vip")
    assert not vip.done
    assert "differ" in vip.notes[0]
    line = page_data([vip])["entries"][0]
    assert [len(results) for results in line[-1]] == [2]


def test_a_single_run_gets_its_interval_from_the_test_images() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    scores = (rng.normal(size=(200, 2)) + 2 * np.eye(2)[labels]).astype(np.float32)
    predictions = Predictions([str(i) for i in range(200)], None, labels, scores)
    found = image_bounds(predictions, ["a", "b"], ["accuracy", "auroc"])
    accuracy = float((scores.argmax(1) == labels).mean())
    ranked = found["accuracy"]
    assert ranked.mean == pytest.approx(accuracy)
    assert ranked.low is not None
    assert ranked.high is not None
    # The binomial interval, to which the bootstrap is close here.
    half = 1.96 * (accuracy * (1 - accuracy) / 200) ** 0.5
    assert ranked.high - ranked.low == pytest.approx(2 * half, rel=0.25)
    assert found.keys() == {"accuracy", "auroc"}


HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "{{ 7*7 }}",
    "]]>\u2028\u2029&amp;",
]


@given(st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=30))
def test_names_never_become_markup(name: str) -> None:
    ranked = record_dict(name, dataset=name, backbone=name)
    ranked["notes"] = [name]
    ranked["hparams"] = {name: name}
    ranked["data"]["class_names"] = [name, "b", "c"] if name not in "bc" else ["x", "y", "z"]
    page = render_page(entries(Record.of(ranked)), title=name)
    # As a browser's parser sees it: two scripts, the first of them data, and no element more.
    scripts = re.findall(r"<script\b[^>]*>(.*?)</script", page, re.S | re.I)
    assert len(scripts) == 2
    assert "<!--" not in scripts[0]
    data = json.loads(scripts[0])
    assert data["notes"] == [scrub(Record.of(ranked).notes[0])]
    assert data["rows"][0]["label"] == Record.of(ranked).cell.method
    plain = render_page(entries(make("vip")), title="x")
    assert page.count("<") - plain.count("<") == 0


def test_no_path_stands_in_the_page() -> None:
    ranked = record_dict("vip")
    ranked["hparams"]["bank"] = "/home/anna/patient-17.pt"
    ranked["notes"] = ["symptoms of C:\\clinic\\symptoms.json"]
    ranked["data"]["caption"] = "from ~/images"
    failed = record_dict("coop", error="DataError")
    failed["error"]["message"] = "patient-17.png is broken"
    page = render_page(entries(Record.of(ranked), Record.of(failed)))
    for secret in ("anna", "patient-17", "clinic", "~/images"):
        assert secret not in page
    assert page.count("\\u003cpath\\u003e") == 3


def test_the_page_brings_all_and_loads_nothing() -> None:
    page = render_page(entries(make("vip")))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src &#39;sha256-") or policy[
        1
    ].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r"\b(src|href)=\"(?!#)", page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_it_writes_over_nothing_but_a_leaderboard(tmp_path: Path) -> None:
    page = render_page(entries(make("vip")))
    path = write_page(tmp_path / "site", page)
    assert write_page(tmp_path / "site", page) == path
    path.write_text("<html>my homepage</html>")
    with pytest.raises(FileExistsError, match="folder"):
        write_page(tmp_path / "site", page)
    assert path.read_text() == "<html>my homepage</html>"


def test_the_command_names_what_made_the_record() -> None:
    ranked = record_dict("vip[context=off]", 4, 3)
    ranked["provenance"]["dataset"] = {"source": "npz:PATH"}
    assert run_command(Record.of(ranked)) == (
        "vipbench run --methods 'vip[context=off]' --datasets npz:PATH --backbones toy-clip "
        "--views per-epoch --sampler nested --validation 'min(k,4)' --selection last "
        "--precision fp32 --plugins-dir DIR --shots 4 --seeds 3"
    )
    own = record_dict("ours", 0, 0)
    own["provenance"]["method"] = {"plugin": "vipbench"}
    own["notes"] = ["profile quick: unpublished settings"]
    assert run_command(Record.of(own)) == (
        "vipbench run --methods 'vip[n_ctx=4,lr=0.002]' --datasets toyderm --backbones toy-clip "
        "--precision fp32 --profile quick"
    )
