"""Records from others: forged identities are refused, and nobody's results pass for one's own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load, save

from tests.conftest import Cli
from vipbench.results.records.metrics import compute_metrics
from vipbench.results.records.record import Record
from vipbench.results.sharing.rows import row_hash
from vipbench.results.store.store import Collection, Store

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The command of a run of five cells, but for its --out."""
    file = tmp_path_factory.mktemp("data") / "toy.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("val", 4), ("test", 10)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 100, (count, 28, 28))
        arrays[f"{split}_images"] = (noise + 120 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    np.savez(file, **arrays)
    file.with_suffix(".yaml").write_text("class_names: [dark, bright]\n")
    return (
        "run", "--datasets", f"npz:{file}", "--backbones", "tiny-clip", "--shots", "2",
        "--seeds", "1,2", "--views", "none", "--validation", "none",
        "--methods", "zero-shot,ncm,linear-probe",
    )  # fmt: skip


@pytest.fixture
def honest(cli: Cli, run: tuple[str, ...]) -> Path:
    """The exported records of that run, made once."""
    file = Path(run[2].removeprefix("npz:")).with_name("honest.jsonl")
    if not file.exists():
        done = cli(*run, "--out", file.parent / "out")
        assert done.returncode == 0, done.stderr
        assert cli("export", file.parent / "out", "-o", file).returncode == 0
    return file


def rows_of(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file: Path, rows: Rows) -> Path:
    """The rows, each with the hash that belongs to it: a forger can compute it, too."""
    for row in rows:
        row["sha256"] = row_hash(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def method(rows: Rows) -> None:
    for row in rows:
        row["record"]["cell"]["method_name"] = row["method_name"] = "vip"


def seeds(rows: Rows) -> None:
    for row in rows:
        if row["seed"]:
            row["record"]["cell"]["seed"] = row["seed"] = 3 - row["seed"]


def shots(rows: Rows) -> None:
    for row in rows:
        if row["shots"] == "2":
            row["record"]["cell"]["shots"], row["shots"] = 1, "1"


def data(rows: Rows) -> None:
    for row in rows:
        row["record"]["data"]["fingerprint"] = row["dataset_fingerprint"] = "f" * 64


def backbone(rows: Rows) -> None:
    for row in rows:
        row["record"]["provenance"]["backbone"]["fingerprint"] = "f" * 64


def views(rows: Rows) -> None:
    for row in rows:
        row["record"]["protocol"]["views"] = row["views"] = "per-epoch"


def hparams(rows: Rows) -> None:
    for row in rows:
        row["record"]["hparams"]["logit_scale"] = 1.0


def unnamed(rows: Rows) -> None:
    for row in rows:
        del row["record"]["provenance"]["key_parts"]


def parts(rows: Rows) -> None:
    for row in rows:
        row["record"]["provenance"]["key_parts"]["method.revision"] = 99


@pytest.mark.parametrize(
    ("forge", "fact"),
    [
        (method, "method: "),
        (seeds, "seed: "),
        (shots, "shots: "),
        (data, "data: "),
        (backbone, "backbone: "),
        (views, "views: "),
        (hparams, "hparams: "),
        (unnamed, "key_parts"),
        (parts, "key_parts"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_record_of_another_cell_is_refused(
    cli: Cli, honest: Path, tmp_path: Path, forge: Callable[[Rows], None], fact: str
) -> None:
    rows = rows_of(honest)
    forge(rows)
    file = write(tmp_path / "forged.jsonl", rows)
    done = cli("import", file, "--out", tmp_path / "out", "--submitter", "eve")
    assert done.returncode == 2
    assert fact in done.stderr
    assert "record 1" in done.stderr or "record 2" in done.stderr
    with Store(tmp_path / "out", readonly=True) as store:
        assert store.records() == []


@pytest.mark.parametrize("forged", ["seed", "accuracy"])
def test_a_folder_with_an_altered_record_is_not_merged(
    cli: Cli, honest: Path, tmp_path: Path, forged: str
) -> None:
    with (
        Store(honest.parent / "out", readonly=True) as store,
        Collection(tmp_path / "theirs") as theirs,
    ):
        for record in store.records():
            value = record.to_dict()
            if forged == "seed" and record.cell.seed == 1:
                value["cell"]["seed"] = 3
            if forged == "accuracy":
                value["metrics"]["accuracy"] = 0.123
            theirs.add(Record.of(value), store.predictions(record.key))
    done = cli("merge", tmp_path / "theirs", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"{forged}: " in done.stderr
    with Store(tmp_path / "out", readonly=True) as mine:
        assert mine.records() == []


def test_made_up_scores_under_an_honest_key_are_found_by_running_again(
    cli: Cli, honest: Path, tmp_path: Path, run: tuple[str, ...]
) -> None:
    rows = rows_of(honest)
    for row in rows:
        labels = np.array(next(r["image_labels"] for r in rows if r["image_labels"]))
        scores = np.eye(2, dtype="<f4")[labels]  # every image right
        row["scores"] = base64.b64encode(scores.tobytes()).decode()
        found = compute_metrics(labels, scores, row["record"]["data"]["class_names"])
        row["record"]["metrics"] = found
        row |= {name: found[name] for name in found if name in row}
    file = write(tmp_path / "forged.jsonl", rows)
    out = tmp_path / "out"
    assert cli("import", file, "--out", out, "--submitter", "eve").returncode == 0
    assert cli("verify", out).returncode == 0  # as SECURITY.md says
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"datasets: ['{run[2]}']\nbackbones: [tiny-clip]\n")
    again = cli("verify", out, "--rerun", "2", "--suite", suite)
    assert again.returncode == 1
    assert "2 different" in again.stdout


def test_ones_own_run_counts_nobody_elses_results(
    cli: Cli, honest: Path, tmp_path: Path, run: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    assert cli("import", honest, "--out", out, "--submitter", "anna").returncode == 0
    table = cli("table", out).stdout
    assert "anna" in table
    plan = cli(*run, "--out", out, "--dry-run").stdout
    assert "5 to do" in plan
    assert "'anna'" in plan
    assert "--use-imported" in plan
    assert "5 done" in cli(*run, "--out", out, "--dry-run", "--use-imported").stdout
    assert cli(*run, "--out", out).returncode == 0
    own = pd.read_csv(out / "results.csv")
    assert len(own) == 5
    assert own["submitter"].isna().all()
    assert "anna" not in cli("table", out).stdout
    # Both are kept, and the second run has nothing to do.
    with Store(out, readonly=True) as store:
        assert [len(found) for found in store.submissions().values()] == [2] * 5
        assert store.disputed() == []
    assert "5 cells are done" in cli(*run, "--out", out).stdout


def test_metrics_without_scores_are_shown_as_unverified(
    cli: Cli, honest: Path, tmp_path: Path
) -> None:
    rows = rows_of(honest)
    for row in rows:
        row |= dict.fromkeys(("testset", "image_ids", "image_groups", "image_labels", "scores"))
    file, out = write(tmp_path / "bare.jsonl", rows), tmp_path / "out"
    assert cli("import", file, "--out", out, "--submitter", "ben").returncode == 0
    assert "verified" in cli("table", out).stdout
    frame = tmp_path / "again.csv"
    assert cli("export", out, "-o", frame).returncode == 0
    assert not pd.read_csv(frame)["verified"].any()
    assert re.search("5 .*no scores", cli("verify", out).stdout)


def test_a_rerun_of_nothing_verifies_nothing(cli: Cli, tmp_path: Path) -> None:
    with Store(tmp_path / "out"):
        pass
    done = cli("verify", tmp_path / "out", "--rerun", "4")
    assert done.returncode == 1
    assert "0 cells" in done.stdout
    assert "verified\n" not in done.stdout.replace("not verified", "")


def test_a_rerun_reads_no_cache(cli: Cli, tmp_path: Path, run: tuple[str, ...]) -> None:
    cache = {"VIPBENCH_CACHE": str(tmp_path / "cache")}
    assert cli(*run, "--out", tmp_path / "first", env=cache).returncode == 0
    blocks = list((tmp_path / "cache").rglob("*.safetensors"))
    for file in blocks:  # whole, under the digest of its content, and wrong
        block = load(file.read_bytes())
        block["features"] = np.ascontiguousarray(block["features"][::-1])
        content = save(block)
        file.unlink()
        file.with_name(f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    assert blocks
    poisoned = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert cli(*run, "--out", tmp_path / "out", env=cache).returncode == 0
    done = cli("verify", tmp_path / "out", "--rerun", "1", env=cache)
    assert done.returncode == 1, done.stdout
    assert "1 different" in done.stdout
    assert "verified" not in done.stdout
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == poisoned
    assert cli("verify", tmp_path / "first", "--rerun", "1", env=cache).returncode == 0


HARMLESS = r"@book{good, author = {G{\'e}rin, Beno{\^i}t and \v{S}t and {\O}rn}, title = {A \& B}}"
HARMFUL = (
    r"@article{x, title = {\input{/etc/passwd}}}",
    r"@article{x, title = {\immediate\write18{touch owned}}}",
    r"@article{x, title = {\csname input\endcsname{/etc/passwd}}}",
    r"@article{x, title = {\catcode`\!=0 !input{/etc/passwd}}}",
    r"@article{x, title = {^^5cinput{/etc/passwd}}}",
    r"@article{x, title = {\^^5cinput{/etc/passwd}}}",
    r"@article{x, title = {\"\input{/etc/passwd}}}",
    r"@article{x, title = {\\input{/etc/passwd}}}",
    "@article{x, title = {\\\ninput{/etc/passwd}}}",
    r"@article{x, title = {a}} @preamble{ {\input{/etc/passwd}} }",
    r"@preamble{x, {text}}",
    r"@STRING{x, jan = {text}}",
    r"@article{x, title = {a}, } } note = {b}}",
    r"@article{x, title = {a}",
    r"@article{x, title = {100% } }",
    r"@article{x\input, title = {a}}",
)


def test_a_bibliography_holds_no_commands(cli: Cli, honest: Path, tmp_path: Path) -> None:
    rows = rows_of(honest)[:1]
    made = rows[0]["record"]["provenance"]
    made["method"]["bibtex"] = "\n\n".join([HARMLESS, *HARMFUL])
    made["dataset"]["citation"] = r"a plain citation ^^5cinput /etc/passwd \input /etc/passwd"
    file = write(tmp_path / "theirs.jsonl", rows)
    assert cli("import", file, "--out", tmp_path / "out", "--submitter", "eve").returncode == 0
    done = cli("cite", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    comments = [line for line in lines if line.startswith("%")]
    read = "\n".join(line for line in lines if not line.startswith("%"))
    assert not any("@" in line for line in comments)
    assert sum(" left out" in line for line in comments) == len(HARMFUL)
    assert not re.search(r"\\(?:input|immediate|write|csname|catcode|\\)|\^\^", read)
    assert set(re.findall(r"@(\w+)", read)) == {"software", "book", "misc"}
    assert HARMLESS in read
