"""Results that travel, through the command line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cli
from vipbench.results.records.metrics import compute_metrics
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import run_command
from vipbench.results.store.store import Collection, Store
from vipbench.runspec.run import RunSpec

METHODS = "zero-shot,coop[epochs=2],slow[seconds=0]"


@pytest.fixture(scope="module")
def ran(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run's folder, of a dataset that comes from a path, with a plugin and symptoms."""
    from vipbench.cli.commands.run import run_command

    folder = tmp_path_factory.mktemp("anna-secret")
    symptoms = folder / "symptoms.json"
    symptoms.write_text(json.dumps({"dark": ["a low value"], "bright": ["a high value"]}))
    spec = RunSpec.parse(
        {
            "methods": METHODS,
            "datasets": [f"npz:{toy / 'toy.npz'}"],
            "backbones": "tiny-clip",
            "shots": "1,2",
            "seeds": "1,2",
            "views": "none",
            "out": folder / "out",
            "plugins_dir": toy / "plugins",
            "symptoms": {"*": symptoms},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_PIDS", str(folder / "pids"))
        assert run_command(spec) == 0
    return folder / "out"


def altered(folder: Path, out: Path, name: str) -> Path:
    """A copy whose scores of coop are a little other ones, consistent with their metrics."""
    with Store(folder, readonly=True) as store, Collection(out) as other:
        for record in store.records():
            predictions = store.predictions(record.key)
            assert predictions is not None
            parameters = store.parameters(record.key)
            if record.cell.method_name == "coop":
                scores = predictions.scores.copy()
                scores[:5] = scores[:5, ::-1]
                predictions = Predictions(predictions.ids, None, predictions.labels, scores)
                metrics = compute_metrics(predictions.labels, scores, record.data.class_names)
                changed = record.to_dict() | {"metrics": metrics}
                changed["provenance"]["device"] = name
                record = Record.of(changed)
            other.add(record, predictions, parameters)
    return out


def test_export_import_merge_prefer(cli: Cli, ran: Path, tmp_path: Path) -> None:
    theirs = altered(ran, tmp_path / "theirs", "H100")
    done = cli("export", theirs, "-o", tmp_path / "theirs.jsonl")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "theirs.jsonl").read_text()
    for secret in ("anna", "secret", "toy.npz", "toy.py", "test/0", str(tmp_path)):
        assert secret not in text
    mine = tmp_path / "mine"
    shutil.copytree(ran, mine)

    done = cli("import", tmp_path / "theirs.jsonl", "--out", mine, "--submitter", "ben")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b0 new .*\b5 ", done.stdout)
    with Store(mine, readonly=True) as store:
        numbers = next(iter(store.submissions().values()))
        ids = [store.predictions(r.key, n).ids for n, r in numbers]  # type: ignore[union-attr]
    assert ids[0] == ids[1]  # the pseudonyms gave way to the names that are known here

    done = cli("table", mine, "--format", "csv", "--metric", "accuracy")
    assert re.search(r"coop\[epochs=2\],method,accuracy,1,unfinished,,,0,2", done.stdout)
    assert re.search(
        r"accuracy [\d.]+ \(\(own\), cpu\) \| [\d.]+ \(ben, H100\); spread", done.stderr
    )

    done = cli("merge", "--out", mine, "--prefer", "ben@H100")
    assert done.returncode == 0, done.stderr
    assert "ben@H100" in done.stdout
    table = cli("table", mine, "--format", "csv", "--metric", "accuracy").stdout
    assert re.search(r"coop\[epochs=2\],method,accuracy,1,done,", table)


def test_the_leaderboards_command_makes_the_record_again(
    cli: Cli, ran: Path, toy: Path, tmp_path: Path
) -> None:
    with Store(ran, readonly=True) as store:
        chosen = [r for r in store.records() if r.cell.method_name == "coop" and r.cell.shots == 2]
    program, *args = shlex.split(run_command(chosen[0], [r.cell.seed for r in chosen]))
    assert program == "vipbench"
    args = [arg.replace("PATH", str(toy / "toy.npz")) for arg in args]
    done = cli(*args, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with Store(tmp_path / "out", readonly=True) as store:
        assert store.status() == {record.key: "ok" for record in chosen}


def test_merge_tells_the_spread(cli: Cli, ran: Path, tmp_path: Path) -> None:
    theirs = altered(ran, tmp_path / "theirs", "H100")
    out = tmp_path / "all"
    done = cli("merge", f"anna={ran}", f"ben={theirs}", "--out", out)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "shot, seed 1" in line)
    changed = re.search(
        r"accuracy ([\d.]+) \(anna, cpu\) \| ([\d.]+) \(ben, H100\); spread ([\d.]+)", line
    )
    assert changed is not None
    mine, other, spread = map(float, changed.groups())
    assert spread == pytest.approx(abs(mine - other), abs=0.011)
    with Store(out, readonly=True) as store:
        assert len(store.disputed()) == 4
        kept = [n for several in store.submissions().values() for n in several]
        learned = [store.parameters(r.key, n) for n, r in kept]
    assert len(kept) == 8
    assert all(learned)
    # The same again changes nothing; a wrong name is told with the right ones.
    assert "0 new" in cli("merge", f"anna={ran}", "--out", out).stdout
    done = cli("merge", "--out", out, "--prefer", "carl")
    assert done.returncode == 2
    assert "anna, ben" in done.stderr


def test_verify_finds_what_is_wrong(cli: Cli, ran: Path, toy: Path, tmp_path: Path) -> None:
    env = {"TOY_PIDS": str(tmp_path / "pids")}
    done = cli("verify", ran, "--rerun", "9", "--allow-code", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "metrics: 9 " in done.stdout
    assert re.search("of 9 cells", done.stderr)  # its progress
    again = re.search(r"run again: 9 cells .*: (\d) identical, (\d) within the tol", done.stdout)
    assert again is not None
    assert int(again[1]) + int(again[2]) == 9
    assert int(again[1]) >= 5
    assert "verified" in done.stdout

    theirs = altered(ran, tmp_path / "theirs", "H100")
    shutil.copy(ran / "suite.yaml", theirs)
    wrong = tmp_path / "wrong"
    with Store(ran, readonly=True) as store, Store(wrong) as copy:
        for record in store.records():
            changed = record.to_dict()
            changed["metrics"]["accuracy"] = 0.123
            copy.add(Record.of(changed), store.predictions(record.key))
    done = cli("verify", wrong)
    assert done.returncode == 1
    assert re.search("metrics: 0 .* 9 ", done.stdout)
    assert "accuracy: 0.123 stored" in done.stdout

    done = cli("verify", theirs, "--rerun", "9", "--allow-code", env=env)
    assert done.returncode == 1
    assert "4 different" in done.stdout

    data = bytearray((wrong / "results.sqlite").read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    (wrong / "results.sqlite").write_bytes(data)
    done = cli("verify", wrong)
    assert done.returncode == 1
    assert re.search("wrong.*sqlite", done.stdout)
    assert cli("verify", tmp_path / "nothing").returncode == 2


def test_a_bundle_is_made_again(cli: Cli, ran: Path, toy: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.zip"
    done = cli("export", ran, "--bundle", "--allow-code", "-o", bundle, "--parameters")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files["manifest.json"])
    assert manifest["contains_patient_data"] is False
    assert files["plugins/toy.py"] == (toy / "plugins" / "toy.py").read_bytes()
    assert manifest["datasets"]["toy"]["source"] == "npz:PATH"
    assert {"symptoms/dataset-1.json", "splits.json", "prompts.json"} <= files.keys()
    splits = json.loads(files["splits.json"])["toy"]
    assert len(splits["test"]["ids"]) == 10
    assert [s["shots"] for s in splits["supports"]] == [1, 1, 2, 2]
    assert all(len(s["train"]) == 2 * s["shots"] for s in splits["supports"])
    # At one shot what was learned may be an image's own features.
    shots = {r["key"]: r["shots"] for r in map(json.loads, files["records.jsonl"].splitlines())}
    given = [name[11:75] for name in files if name.startswith("parameters/")]
    assert given
    assert {shots[key] for key in given} == {"2"}
    whole = b"".join(data for name, data in files.items() if not name.startswith("plugins/"))
    for secret in ("anna", "secret", "toy.npz", "test/0", str(tmp_path)):
        assert secret.encode() not in whole

    env = {"TOY_PIDS": str(tmp_path / "pids"), "VIPBENCH_CONFIG": str(tmp_path / "config")}
    out = tmp_path / "again"
    done = cli("reproduce", bundle, "--out", out, env=env)
    assert done.returncode == 2
    assert "--dataset 'toy=npz:...'" in done.stderr
    given_data = ("--dataset", f"toy=npz:{toy / 'toy.npz'}")
    done = cli("reproduce", bundle, "--out", out, *given_data, env=env)
    assert done.returncode == 2
    assert "--allow-code" in done.stderr
    assert str(out / "bundle" / "plugins" / "toy.py") in done.stderr
    assert not (tmp_path / "pids").exists()
    done = cli("reproduce", bundle, "--out", out, *given_data, "--yes", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plugin code: plugins/toy.py" in done.stdout
    assert "reproduced" in done.stdout.splitlines()[-1]

    # Other images: every cell has another key, and the reason is told.
    arrays = dict(np.load(toy / "toy.npz"))
    np.savez(tmp_path / "toy.npz", **{**arrays, "test_images": 255 - arrays["test_images"]})
    (tmp_path / "toy.yaml").write_text("class_names: [dark, bright]\n")
    other = ("--dataset", f"toy=npz:{tmp_path / 'toy.npz'}", "--yes")
    done = cli("reproduce", bundle, "--out", tmp_path / "other", *other, env=env)
    assert done.returncode == 1
    assert "9 not " in done.stdout
    assert "differ: data" in done.stdout


def test_patient_data_leave_by_flag_alone(cli: Cli, ran: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.zip"
    done = cli("export", ran, "--bundle", "--allow-code", "-o", bundle, "--patient-data")
    assert done.returncode == 0, done.stderr
    assert "contains-patient-data" in done.stdout
    with zipfile.ZipFile(bundle) as archive:
        assert json.loads(archive.read("manifest.json"))["contains_patient_data"] is True
    done = cli(
        "export", ran, "--bundle", "--allow-code", "-o", tmp_path / "less.zip", "--parameters"
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(bundle) as full, zipfile.ZipFile(tmp_path / "less.zip") as less:
        gone = len(set(full.namelist()) - set(less.namelist()))
    assert gone
    assert re.search(f"parameters of {gone} ", done.stdout)
    assert "--patient-data" in done.stdout
    done = cli("export", ran, "-o", tmp_path / "x.csv", "--patient-data")
    assert done.returncode == 2
    assert "add --bundle" in done.stderr


def test_cite(cli: Cli, ran: Path) -> None:
    done = cli("cite", ran)
    assert done.returncode == 0, done.stderr
    assert "% method coop: cite zhou2022learning" in done.stdout
    assert done.stdout.count("@article{zhou2022learning,") == 1
    assert "% method slow: " in done.stdout
    assert re.search(r"% backbone tiny-clip: .*licence: Apache-2.0", done.stdout)
    assert "% dataset toy: " in done.stdout
