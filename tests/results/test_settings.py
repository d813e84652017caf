"""Records of different settings are never averaged."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.results.samples import entry_of, key_of, make, planned, record_dict
from vipbench.results.records.record import Record
from vipbench.results.tables import (
    TableError,
    comparison,
)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("protocol", "views"), "none", "protocol.views: per-epoch | none"),
        (("protocol", "validation"), "full", "protocol.validation"),
        (("protocol", "precision"), "bf16", "protocol.precision"),
        (("protocol", "balance"), "class", "protocol.balance: null | class"),
        (("hparams", "lr"), 0.1, "hparams.lr: 0.002 | 0.1"),
        (("hparams", "extra"), 1, "hparams.extra: null | 1"),
        (("hparams", "extra"), "null", 'hparams.extra: null | "null"'),
        (("hparams", "n_ctx"), "4", 'hparams.n_ctx: 4 | "4"'),
        (("hparams", "n_ctx"), 4.0, "hparams.n_ctx: 4 | 4.0"),
        (("recipe",), None, "recipe"),
        (("cell", "method_name"), "coop", "method: vip | coop"),
        (("data", "fingerprint"), "f" * 64, "dataset.fingerprint"),
        (("data", "symptoms_sha256"), None, "symptoms_sha256"),
        (("provenance", "backbone", "fingerprint"), "f" * 64, "backbone.fingerprint"),
        (("provenance", "method", "plugin"), "ours", "method.plugin: vipbench.vip | ours"),
        (("provenance", "key_parts"), {"texts": "a" * 64}, "class names and templates: null | a"),
    ],
)
def test_seeds_under_different_settings_are_never_averaged(
    path: tuple[str, ...], value: Any, named: str
) -> None:
    other = record_dict(seed=2)
    part: Any = other
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(TableError, match="settings") as caught:
        comparison([make(seed=1), Record.of(other)])
    assert named in str(caught.value)
    assert re.search("vip .*toyderm, toy-clip, .*4", str(caught.value))
    # Of a failed cell there is no number to mix.
    failed = other | {"status": "error", "metrics": {}, "error": {"type": "E", "message": ""}}
    assert entry_of(comparison([make(seed=1), Record.of(failed)]), "vip", 4).state == "unfinished"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("timing", "train"), 9.0),
        (("created",), "2027-01-02T03:04:05+00:00"),
        (("data", "n_support"), 11),
        (("provenance", "stacked_cells"), 3),
        (("provenance", "prediction_hash"), "a" * 64),
    ],
)
def test_what_makes_no_number_may_differ(path: tuple[str, ...], value: Any) -> None:
    other = record_dict(seed=2)
    part: Any = other
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    table = comparison([make(seed=1), Record.of(other)])
    assert entry_of(table, "vip", 4).n == 2
    assert table.notes == ()


def test_definitions_of_a_shown_metric_must_agree() -> None:
    records = []
    for method, seed, revisions in (
        ("vip", 1, {"accuracy": 1, "ece": 1}),
        ("vip", 2, {"accuracy": 1, "ece": 2, "new": 1}),
        ("coop", 1, {"accuracy": 1}),
    ):
        value = record_dict(method, seed=seed, metrics={"ece": 0.1})
        value["provenance"]["metric_revisions"] = revisions
        records.append(Record.of(value))
    assert entry_of(comparison(records), "vip", 4).n == 2
    with pytest.raises(TableError, match=r"metric_revisions\.ece: 1 \| 2"):
        comparison(records, metrics=("ece",))


def test_notes_of_records_are_reported_once() -> None:
    records = []
    for method in ("coop", "vip", "probe"):
        for seed in (1, 2):
            notes = ["fewer epochs than published"] if method != "probe" else []
            records.append(Record.of(record_dict(method, seed=seed) | {"notes": notes}))
    assert comparison(records).notes == ("coop and vip: fewer epochs than published.",)


def test_long_settings_that_differ_in_the_middle_differ() -> None:
    records = []
    for seed, middle in ((1, "a"), (2, "b")):
        value = record_dict(seed=seed)
        value["hparams"]["prompt"] = "x" * 100 + middle + "y" * 100
        records.append(Record.of(value))
    with pytest.raises(TableError, match=r"hparams.prompt: x+… \(SHA-256 \w+\) \| x+…"):
        comparison(records)


def test_other_images_or_weights_share_no_column() -> None:
    value = record_dict("coop")
    value["data"]["fingerprint"] = "e" * 64
    with pytest.raises(TableError, match=r"toyderm, toy-clip: .*dataset.fingerprint"):
        comparison([make("vip"), Record.of(value)])
    # Beside each other, on two datasets, they may stand.
    value["cell"]["dataset"] = "other"
    assert len(comparison([make("vip"), Record.of(value)]).columns) == 4


def test_zero_shot_serves_every_protocol() -> None:
    value = record_dict("zero-shot", 0, 0)
    value["protocol"] |= {"views": "none", "sampler": "coop", "validation": "none"}
    table = comparison([Record.of(value), make("vip")])
    assert table.notes == ()
    assert re.search("views per-epoch.*sampler nested", table.caption)


def test_the_same_cell_twice_is_refused_or_planned() -> None:
    first, other = make(), record_dict(key=key_of("other"))
    other["hparams"]["lr"] = 0.1
    second = Record.of(other)
    with pytest.raises(TableError, match=r"twice.*hparams\.lr: 0\.002 \| 0\.1"):
        comparison([first, second])
    with pytest.raises(TableError, match="twice"):
        comparison([first, first])
    table = comparison([first, second], planned([second]))
    assert entry_of(table, "vip", 4).n == 1
    [note] = table.notes
    assert re.search("^1 record .*`vipbench table DIR --superseded`", note)
