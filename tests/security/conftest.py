"""Files of a stranger, each of which brings code that leaves a mark where it runs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.backbones.hub_models import save_own_code
from tests.conftest import REPO
from vipbench.engine.cluster.work import code_digest
from vipbench.results.records.record import Record
from vipbench.results.sharing.bundle import read_bundle, write_bundle
from vipbench.results.store.store import Collection, Store

MARK = "import os, pathlib\npathlib.Path({mark!r}).write_text('ran')\n"
METHOD = '''
import torch, vipbench
from vipbench import api
from helpers import zeros

class Marked(api.Method):
    """Zeros."""
    name = "marked"
    kind = "TF"
    uses_support = False

    def forward(self, x):
        return zeros(len(x), self.task.n_classes)

@vipbench.hookimpl
def register_methods(register):
    register(Marked)
'''
HELPERS = "import torch\nzeros = torch.zeros\n"
REMOTE = "transformers:stranger/pair+remote-code"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclasses.dataclass
class Stranger:
    """folder: holds `plugins/` and `suite.yaml`, `remote.yaml` with code in a repository of the
    Hub's cache `hub/`, a finished run `results/` with plugins of its own, `bundle.zip` of it,
    `forged/` with a record that names the repository, `remote.zip` without plugins,
    `prompt.safetensors` that names the repository, `records.jsonl`, and `image.png`. mark: what
    the code writes."""

    folder: Path
    mark: Path
    cache: Path

    def run(
        self, *args: object, config: Path, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """The command line without a terminal, in the stranger's folder; `config` holds what is
        trusted."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith("VIPBENCH_")}
        path = os.pathsep.join(p for p in (str(REPO), mine.get("PYTHONPATH")) if p)
        mine |= {"PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
        mine |= {"VIPBENCH_CONFIG": str(config), "VIPBENCH_CACHE": str(self.cache)}
        mine |= {"HF_HUB_CACHE": str(self.folder / "hub"), "HF_HUB_OFFLINE": "1"}
        mine |= {"HF_MODULES_CACHE": str(self.cache / "modules")}
        return subprocess.run(
            [sys.executable, "-m", "vipbench", *map(str, args)],
            capture_output=True, text=True, timeout=240, cwd=cwd or self.folder, env=mine | env,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """Made once; nobody may change it but below `out/`."""
    folder = tmp_path_factory.mktemp("stranger")
    mark = folder / "mark"
    made = Stranger(folder, mark, tmp_path_factory.getbasetemp() / "features")
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "marked.py").write_text(MARK.format(mark=str(mark)) + METHOD)
    (plugins / "helpers.py").write_text(HELPERS)
    grid = "datasets: [synthderm]\nshots: [1]\nseeds: [1]\nviews: none\nout: results\n"
    (folder / "suite.yaml").write_text(
        f"methods: [marked, symptoms-mean]\nbackbones: [tiny-clip]\nplugins_dir: plugins\n{grid}"
    )
    remote = f"methods: [zero-shot]\nbackbones: ['{REMOTE}']\n{grid}"
    (folder / "remote.yaml").write_text(remote)
    local = f"methods: [zero-shot]\nbackbones: [tiny-clip]\n{grid}"
    setup = f"{{name: slurm, setup: ['touch {mark}'], python: {mark}}}"
    (folder / "setup.yaml").write_text(f"{local}executor: {setup}\n")
    (folder / "module.yaml").write_text(f"{local}executor: vipbench.__main__:main\n")
    jobs = folder / "jobs" / "parts"
    jobs.mkdir(parents=True)
    run = {
        "schema": 1, "id": "0" * 8, "digest": "0", "next": 1, "package": code_digest(), "lead": 1,
        "executor": {"name": "slurm"}, "plugins_dir": str(plugins), "cwd": str(folder),
        "grants": {"everything": True, "named": [str(plugins)], "digests": []}, "seal": "0",
        "environment": {"VIPBENCH_ALLOW_CODE": "1"},
        "parts": [{"number": 0, "order": 0, "cells": 2, "without_support": True}],
    }  # fmt: skip
    (jobs / "run.json").write_text(json.dumps(run))
    part = (folder / "suite.yaml").read_text().replace("dir: plugins", f"dir: {plugins}")
    (jobs / "000.yaml").write_text(part)
    snapshot = folder / "hub" / "models--stranger--pair" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    save_own_code(snapshot, MARK.format(mark=str(mark)))
    theirs = tmp_path_factory.mktemp("theirs")
    for args in (
        ("run", "suite.yaml", "--plugins-dir", plugins),
        ("export", "results", "--bundle", "-o", "bundle.zip"),
        ("export", "results", "-o", "records.jsonl"),
    ):
        done = made.run(*args, config=theirs)
        assert done.returncode == 0, done.stderr
    with Store(folder / "results", readonly=True) as store:
        [record] = [r for r in store.records() if r.cell.method_name == "symptoms-mean"]
        changed = record.to_dict()
        changed["cell"]["backbone"] = REMOTE
        with Collection(folder / "forged") as other:
            other.add(Record.of(changed), store.predictions(record.key))
    manifest, files = read_bundle(folder / "bundle.zip")
    kept = {name: data for name, data in files.items() if not name.startswith("plugins/")}
    write_bundle(folder / "remote.zip", kept | {"suite.yaml": remote.encode()}, manifest)
    save_file({"x": torch.zeros(1)}, folder / "prompt.safetensors", {"vipbench": json.dumps(CARD)})
    from PIL import Image

    Image.new("RGB", (32, 32)).save(folder / "image.png")
    mark.unlink()
    return made


INFO = {"shots": 1, "n_support": 2, "n_classes": 2, "backbone": "y", "dim": 1, "width": 1}
CARD = {
    "format": "vipbench-prompt", "version": 1, "row": "zero-shot", "method": "zero-shot",
    "method_revision": 1, "class_names": ["a", "b"], "hparams": {}, "seed": 1,
    "dataset_fingerprint": "0", "info": {**INFO, "dataset": "x"}, "templates": ["a photo of {}."],
    "symptoms": None, "descriptions": None, "backbone": REMOTE, "backbone_fingerprint": "0",
    "dataset": "x",
}  # fmt: skip


@pytest.fixture
def unmarked(stranger: Stranger) -> Stranger:
    """The stranger, whose code has not run yet."""
    stranger.mark.unlink(missing_ok=True)
    return stranger
