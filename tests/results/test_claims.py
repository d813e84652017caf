"""Comparisons from records: what they say, what they refuse."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Cli
from tests.results.samples import planned, record_dict
from tests.results.simulated import folder
from vipbench.errors import UsageError
from vipbench.results import stats
from vipbench.results.compare.claims import Claims, compare
from vipbench.results.compare.sentences import CLAIM_FORMATS, sentence, write_claims
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.records.record import Record
from vipbench.results.stats import StatsError
from vipbench.results.stats.pairing import select
from vipbench.results.store.store import Store


def opened(path: Path) -> tuple[Cells, Any]:
    with Store(path, readonly=True) as store:
        loaded = {key: store.predictions(key) for key in store.status()}
        return cells_of(store.records(), store.plan()), loaded.get


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("one"), per_patient=2)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nine")
    return folder(out, datasets=[f"set {i}" for i in range(9)], shots=(4,), n=90)


def test_the_sentence(one: Path) -> None:
    cells, load = opened(one)
    found = compare(select(cells, shots=[4, 16]), load, "vip", ["coop"])
    assert [c.shots for c in found.claims] == [4, 16]
    claim = found.claims[0]
    message = sentence(claim, found)
    for part in (
        "toyderm with toy-clip at 4 shots, the accuracy of vip",
        "points higher",
        "95 %",
        "new test images",
        "240 test images",
        "same support sets",
        "(vip against coop, shots 4 and 16)",
    ):
        assert part in message
    assert claim.p_corrected <= 2 * claim.p
    assert f"{100 * claim.interval.estimate:.1f} points" in message
    assert claim.mean_a - claim.mean_b == pytest.approx(claim.interval.estimate)
    # Patients, not images, are what is drawn: no test of single images is offered.
    assert all(pair.p is None for pair in claim.pairs)


def test_a_method_without_images_shares_no_support_set(one: Path) -> None:
    cells, load = opened(one)
    found = compare(select(cells, shots=[4]), load, "vip", ["zero-shot"])
    message = sentence(found.claims[0], found)
    assert re.search("zero-shot .*support", message)
    assert message.count("support sets") == 1  # of the population, not of both methods


def test_it_is_the_statistics_of_the_stored_scores(one: Path) -> None:
    cells, load = opened(one)
    found = compare(select(cells, shots=[4]), load, "vip", ["zero-shot"], metrics=["auroc"])
    by_method: dict[str, list[Any]] = {"vip": [], "zero-shot": []}
    for cell, record in cells.done():
        if cell.method in by_method and cell.shots in (0, 4):
            by_method[cell.method].append(load(record.key))
    first = by_method["vip"][0]
    tests = stats.TestSet.of(first.labels, first.groups, ["a", "b", "c"])
    scores = [p.scores for p in (*by_method["vip"], *by_method["zero-shot"])]
    values, reps = stats.replicates("auroc", tests, scores)
    message = stats.both_interval(values[:3] - values[3], reps[:, :3] - reps[:, 3:], 120)
    assert found.claims[0].interval == message
    assert found.claims[0].seeds == (1, 2, 3)


def test_populations(nine: Path) -> None:
    cells, load = opened(nine)
    differences = [
        compare(select(cells, datasets=[f"set {i}"]), load, "vip", ["coop"], population="seeds")
        .claims[0]
        .interval.estimate
        for i in range(9)
    ]
    for name in ("datasets", "datasets-bootstrap", "average"):
        (claim,) = compare(cells, load, "vip", ["coop"], population=name).claims
        assert len(claim.datasets) == claim.interval.n_datasets == 9
        if name == "datasets":
            assert claim.p == pytest.approx(stats.wilcoxon(np.array(differences)).p)
        else:
            assert claim.interval.estimate == pytest.approx(np.mean(differences))
        message = sentence(claim, Claims((claim,), (), ()))
        population = stats.POPULATIONS["both" if name == "average" else "datasets"]
        assert population in message
        assert "uncorrected" in message


def test_one_seed_is_compared_given_its_models(tmp_path: Path) -> None:
    cells, load = opened(folder(tmp_path, seeds=(1,), shots=(4,)))
    with pytest.raises(StatsError, match=r"1 seed .*3 seeds.*--population images"):
        compare(cells, load, "vip", ["coop"])
    (claim,) = compare(cells, load, "vip", ["coop"], population="images").claims
    assert claim.test == "McNemar's mid-p test"
    assert claim.p == claim.pairs[0].p
    assert claim.pairs[0].only_a - claim.pairs[0].only_b == round(240 * claim.interval.estimate)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("missing", "2 of"),
        ("unequal", "(vip: 1, 2, 3; coop: 1, 2)"),
        ("sampler", "(sampler: nested | coop)"),
        ("unscored", "has no scores"),
        ("settings", "hparams.lr"),
    ],
)
def test_what_cannot_be_paired_is_refused(one: Path, change: str, expected: str) -> None:
    cells, load = opened(one)
    cells = select(cells, methods=["vip", "coop"], shots=[4])
    records = {record.key: record for _, record in cells.done()}
    plan = list(cells.planned)
    key = next(c.key for c in plan if c.method == "coop" and c.seed == 3)
    assert key is not None
    if change == "missing":
        del records[key]
    if change == "unequal":
        plan = [c for c in plan if c.key != key]
    if change in ("sampler", "settings"):
        for cell in plan:
            if cell.method == "coop" and (change == "sampler" or cell.key == key):
                value = records[str(cell.key)].to_dict()
                if change == "sampler":
                    value["protocol"]["sampler"] = "coop"
                else:
                    value["hparams"]["lr"] = 1.0
                records[str(cell.key)] = Record.of(value)
    if change == "unscored":
        load = {}.get
    with pytest.raises(StatsError) as caught:
        compare(Cells(tuple(plan), records), load, "vip", ["coop"])
    assert expected in str(caught.value)


def test_mixed_settings_are_reported(one: Path) -> None:
    cells, load = opened(one)
    cells = select(cells, methods=["vip", "coop"], shots=[4])
    records = {}
    for cell, record in cells.done():
        value = record.to_dict()
        if cell.method == "vip":
            value["protocol"]["validation"] = "full"
            value["provenance"] |= {"torch": "2.13.0", "device": "NVIDIA H100"}
        records[record.key] = Record.of(value)
    found = compare(Cells(cells.planned, records), load, "vip", ["coop"])
    message = write_claims(found)
    assert "min(k,4) (coop); full (vip)" in message
    assert "torch: 2.12.0 and 2.13.0" in message
    [warning] = (line for line in message.splitlines() if line.startswith("Warning: "))
    assert "NVIDIA H100 (vip)" in warning
    assert "cpu (coop)" in warning


def test_names(one: Path) -> None:
    cells, load = opened(one)
    with pytest.raises(UsageError, match=r"'vop'.*'vip'"):
        compare(cells, load, "vop", ["coop"])
    variant = replace(
        cells, planned=tuple(c.model_copy(update={"method": "vip[M=8]"}) for c in cells.planned)
    )
    with pytest.raises(UsageError, match=re.escape("'vip[M=8]'")):
        select(variant, methods=["vip"])
    with pytest.raises(UsageError, match="population 'all'"):
        compare(cells, load, "vip", ["coop"], population="all")
    with pytest.raises(UsageError, match="'vip'"):
        compare(cells, load, "vip", ["vip"])
    with pytest.raises(UsageError, match="dataset 'x'"):
        select(cells, datasets=["x"])
    with pytest.raises(UsageError, match="95"):
        compare(cells, load, "vip", ["coop"], level=95)


def test_hostile_names_are_harmless_in_every_format() -> None:
    hostile = "=cmd|' /C calc'!A0 <script>%_& $x$ \x1b[31m"
    records, loaded = [], {}
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    for method in (hostile, "plain"):
        for seed in (1, 2, 3):
            value = record_dict(method, 4, seed, metrics={"n": 60})
            value["data"]["test_counts"] = [20, 20, 20]
            record = Record.of(value)
            records.append(record)
            from vipbench.results.records.predictions import Predictions

            scores = rng.normal(size=(60, 3)).astype(np.float32)
            loaded[record.key] = Predictions([str(i) for i in range(60)], None, labels, scores)
    found = compare(cells_of(records, planned(records)), loaded.get, hostile, ["plain"])
    message = {name: write_claims(found, name) for name in CLAIM_FORMATS}
    assert "\x1b" not in message["text"]
    assert "<script>" not in message["github"]
    assert r"\textless{}script\textgreater{}\%\_\& \$x\$" in message["latex"]
    # The lower end is below 0: its sign is set, not named by its code point.
    assert "−" in message["text"]
    assert "$-$" in message["latex"]
    assert "(U+" not in message["latex"].replace("(U+001B)", "")
    (row,) = csv.DictReader(io.StringIO(message["csv"]))
    assert row["a"] == "'" + hostile
    assert json.loads(message["json"])["claims"][0]["a"] == hostile


def test_the_command(cli: Cli, one: Path) -> None:
    done = cli("compare", "vip", "coop,zero-shot", one, "--shots", "4", "--format", "json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["family"] == len(value["claims"]) == 2
    assert value["claims"][0]["sentence"].startswith("On toyderm with toy-clip at 4 shots")
    refused = cli("compare", "vip", "coop", one, "--population", "datasets", "--shots", "4")
    assert refused.returncode == 2
    assert "6 datasets" in refused.stderr
