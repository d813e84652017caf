"""The same run again asks no worker, unless something that its plan rests on has changed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli
from tests.results.samples import planned_cell
from vipbench.engine import kept
from vipbench.engine.workers import kept_plans
from vipbench.engine.workers.messages import Plan
from vipbench.runspec.run import RunSpec

LONG_AGO = 1_600_000_000
PLUGIN = '''
import vipbench
from vipbench import api

class Same(api.Method):
    """Zero-shot again."""
    name = "same"
    kind = "TF"
    uses_support = False

    def forward(self, x):
        return x[:, : self.task.n_classes]

@vipbench.hookimpl
def register_methods(register):
    register(Same)
'''


def write_data(folder: Path) -> Path:
    """`table.csv` and its images, two classes, changed long ago."""
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for split, count in (("train", 4), ("val", 2), ("test", 4)):
        for i in range(count):
            name = f"{split}-{i}.png"
            grey = rng.integers(0, 100, (16, 16)) + 120 * (i % 2)
            Image.fromarray(grey.astype(np.uint8)).save(folder / name)
            rows.append(f"{name},{('dark', 'bright')[i % 2]},{split}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    for file in folder.iterdir():
        os.utime(file, (LONG_AGO, LONG_AGO))
    return folder


def test_a_kept_plan_is_used_until_an_image_changes(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)

    def run(*more: str | Path) -> str:
        done = cli(
            *("run", "--datasets", f"csv:{data / 'table.csv'}", "--backbones", "tiny-clip"),
            *("--methods", "ncm", "--shots", "1", "--seeds", "1", "--views", "none"),
            *("--out", tmp_path / "out", *more),
            env={"VIPBENCH_CACHE": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "1 to do" in run()
    [file] = (tmp_path / "cache" / "plans").iterdir()
    answer = json.loads(file.read_text())
    reads = {Path(path).name for path in answer["answer"]["reads"]}
    assert {"table.csv", "train-0.png", "val-1.png", "test-3.png"} <= reads
    # A word that only this file can have given.
    answer["answer"]["plan"]["notices"] = ["the kept plan"]
    file.write_text(json.dumps(answer))
    for command in ((), ("--dry-run",)):
        message = run(*command)
        assert "kept plan" in message
        assert "0 to do, 1 done" in message
    image = data / "train-0.png"
    image.write_bytes((data / "train-2.png").read_bytes())
    message = run("--dry-run")
    assert "kept plan" not in message
    assert "1 to do" in message
    # Nobody knows what a plugin reads.
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "same.py").write_text(PLUGIN)
    before = {path.name for path in file.parent.iterdir()}
    run("--dry-run", "--plugins-dir", plugins)
    assert {path.name for path in file.parent.iterdir()} == before


def overwrite(folder: Path) -> None:
    """Same size, same time of change, same inode: what is left is when that was set."""
    file = folder / "table.csv"
    file.write_text(file.read_text().replace("bright", "blight"))
    os.utime(file, (LONG_AGO, LONG_AGO))


def replace(folder: Path) -> None:
    new = folder / "new.png"
    new.write_bytes((folder / "train-1.png").read_bytes())
    os.utime(new, (LONG_AGO, LONG_AGO))
    new.replace(folder / "train-1.png")


@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        replace,
        lambda folder: os.utime(folder / "test-0.png"),
        lambda folder: (folder / "test-0.png").unlink(),
        lambda folder: (folder / "table.yaml").write_text("name: mine\n"),
        lambda folder: (folder / "audit.json").write_text("{}"),
        lambda folder: (folder / "weights" / "model.safetensors").write_bytes(b"other"),
    ],
)
def test_each_change_of_a_file_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    folder = write_data(tmp_path)
    (folder / "weights").mkdir()
    (folder / "weights" / "config.json").write_text("{}")
    # Read by a library past Python, beside what Python reads.
    (folder / "weights" / "model.safetensors").write_bytes(b"these")
    names = ("table.csv", "train-1.png", "test-0.png", "audit.json", "weights/config.json")
    reads = [str(folder / name) for name in names]
    spec = RunSpec.parse({"datasets": [f"csv:{folder / 'table.csv'}"], "out": str(folder / "out")})
    before = kept_plans._state_of_files(spec, reads)[0]
    (folder / "out").mkdir()
    assert kept_plans._state_of_files(spec, reads)[0] == before
    change(folder)
    assert kept_plans._state_of_files(spec, reads)[0] != before


def test_versions_variables_flags_and_the_folder_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    seen = {kept_plans._state_of_program()}
    (tmp_path / "timm-9.0.dist-info").mkdir()
    seen.add(kept_plans._state_of_program())
    os.utime(tmp_path / "timm-9.0.dist-info", (LONG_AGO, LONG_AGO))
    seen.add(kept_plans._state_of_program())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    seen.add(kept_plans._state_of_program())
    monkeypatch.setattr(kept, "state_of_code", lambda: "other code")
    seen.add(kept_plans._state_of_program())
    assert len(seen) == 5
    assert kept_plans._state_of_program() in seen
    specs = [RunSpec.parse({"seeds": [1]}), RunSpec.parse({"seeds": [2]})]
    names = {kept_plans._name(spec) for spec in specs}
    monkeypatch.chdir(tmp_path)
    names |= {kept_plans._name(spec) for spec in specs}
    assert len(names) == 4


def test_what_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    table = str(write_data(tmp_path / "data") / "table.csv")
    plan = Plan(reads=[table])
    foreign = planned_cell("k", "b", "d", "m", 1, 1, plugins=("mine.py",))
    spec = RunSpec.parse({"seeds": [1]})
    now = Path(table).stat().st_ctime_ns
    os.utime(table)
    kept_plans.keep(spec, plan, now)  # the file has just been changed
    assert kept_plans.find(spec) is None
    os.utime(table, (LONG_AGO, LONG_AGO))
    for other, event in (
        (RunSpec.parse({"backbones": ["transformers:org/name+remote-code"]}), plan),
        (RunSpec.parse({"plugins_dir": str(tmp_path)}), plan),
        (spec, Plan(reads=[table], unknown=("method 'mine'",))),
        (spec, Plan(reads=[table], broken=["plugin 'mine' (mine.py): no such module"])),
        (spec, Plan(reads=[table], cells=[foreign])),
        (spec, Plan()),
    ):
        kept_plans.keep(other, event, now)
        assert kept_plans.find(other) is None
    kept_plans.keep(spec, plan, now)
    assert kept_plans.find(spec) == plan
