"""A plugin that changes its process changes nobody else's numbers, and is blamed by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.backbones.hub_models import save_own_code
from tests.reliability import grid
from vipbench import trust
from vipbench.engine.workers import driver, process
from vipbench.runspec.run import RunSpec

MEANS = '''
"""Class means of the support set, and what this plugin does besides."""
import dataclasses
import os
import sys
import time
from pathlib import Path

import torch
import vipbench
from vipbench import api

{at_import}

class Own(api.Method):
    name = "{name}"
    kind = "TF"
    needs = frozenset({{"text"}})

    def prepare(self, support):
        seen = sorted(name for name in sys.modules if name.startswith("vipbench_plugin_"))
        with Path(os.environ["SEEN"]).open("a") as file:
            file.write(f"{name} {{os.getpid()}} {{len(seen)}}\\n")
        {in_prepare}
        self.task.class_features()
        rows = [support.plain[support.labels == c].mean(0) for c in range(support.n_classes)]
        self.means = torch.stack(rows)

    def forward(self, x):
        return x @ self.means.T

@vipbench.hookimpl
def register_methods(register):
    register(Own)
'''
# Any of these would change the numbers of every cell that shares the process.
AT_IMPORT = """
import torch.nn.functional as F
from vipbench.engine.training.optim import Optimizer
normalize = F.normalize
F.normalize = lambda x, *args, **more: normalize(x, *args, **more).roll(1, 0)
torch.optim.SGD.step = Optimizer.step = lambda self, *args, **more: None
"""
IN_PREPARE = "torch.set_default_dtype(torch.float64); torch.set_num_threads(7)"
PERMUTE = """
        for weight in self.task.backbone._model.parameters():
            if weight.dim() == 2:
                weight.data.copy_(weight.data.flip(0))
"""
PLUGINS = {
    "patches": (AT_IMPORT, IN_PREPARE),
    "permutes": ("", PERMUTE.strip()),
    "renames": ("", "self.task.backbone.fingerprint = 'x'"),
    "forks": ("", "os.fork()"),
    "good": ("", ""),
}
BUILTIN = "zero-shot,coop[epochs=3]"
WARD = '''
"""The toy under another name, and a function of torch that nobody can call any more."""
import numpy as np
import torch
import vipbench
from vipbench.api import Dataset, Split

torch.nn.functional.normalize = None

class Ward(Dataset):
    class_names = ("dark", "bright")
    templates = ("one image of the {} kind.",)
    licence = "internal"
    name = "ward"

    def load(self, root):
        a = np.load("toy.npz")
        return {
            s: Split([*a[f"{s}_images"]], a[f"{s}_labels"].ravel().astype(np.int64),
                     tuple(map(str, range(len(a[f"{s}_labels"])))))
            for s in ("train", "val", "test")
        }

@vipbench.hookimpl
def register_datasets(register):
    register("ward", lambda argument: Ward())
'''


def plugins(folder: Path, *names: str) -> None:
    for old in (folder / "plugins").iterdir():
        old.unlink()
    for name in names:
        at_import, in_prepare = PLUGINS[name]
        text = MEANS.format(name=name, at_import=at_import, in_prepare=in_prepare)
        (folder / "plugins" / f"{name}.py").write_text(text)


def run(folder: Path, out: str, methods: str, cache: str, *more: str) -> tuple[int, str]:
    env = {"VIPBENCH_CACHE": str(folder / cache), "SEEN": str(folder / f"{out}.seen")}
    status, _, err = grid.finish(grid.start(folder, folder / out, methods, *more, env=env))
    return status, err


def shelves(cache: Path) -> list[Mapping[str, object]]:
    return [json.loads(mark.read_text()) for mark in cache.rglob("shelf.json")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alone`: without the offenders. `beside`: with them, in front. `after`: without, on a cache
    that they have used."""
    folder = grid.write_data(tmp_path_factory.mktemp("processes"))
    plugins(folder, "good")
    assert run(folder, "alone", f"{BUILTIN},good", "one") == (0, "")
    plugins(folder, *PLUGINS)
    status, err = run(folder, "beside", f"patches,permutes,renames,forks,good,{BUILTIN}", "two")
    assert status == 1, err
    plugins(folder, "good")
    assert run(folder, "after", f"{BUILTIN},good", "two")[0] == 0
    return folder


def test_the_neighbours_numbers_are_those_of_a_run_without_it(folder: Path) -> None:
    alone, beside = grid.bits(folder / "alone"), grid.bits(folder / "beside")
    assert len(alone) == 3
    assert {key: beside[key] for key in alone} == alone
    assert grid.bits(folder / "after") == alone


def test_each_plugin_has_a_process_of_its_own(folder: Path) -> None:
    seen = [line.split() for line in (folder / "beside.seen").read_text().splitlines()]
    assert {name for name, _, _ in seen} == set(PLUGINS)
    assert {loaded for _, _, loaded in seen} == {"1"}
    assert len({pid for _, pid, _ in seen}) >= len(PLUGINS)


def test_who_permutes_weights_is_named_and_nobody_else(folder: Path) -> None:
    errors = {r.cell.method: r.error for r in grid.records(folder / "beside") if not r.ok}
    assert {*errors} == {"permutes", "renames"}  # and the one that forks is no error
    for name, fact in (("permutes", "weights"), ("renames", "backbone: ")):
        error = errors[name]
        assert error is not None
        assert (error.plugin, error.file) == (name, f"{name}.py")
        assert fact in error.message
    assert "tiny-clip" in (folder / "beside" / "table.md").read_text()


def test_images_that_others_may_read_are_encoded_without_any_plugin(folder: Path) -> None:
    """Also where nothing built-in is run, and where the plugin was edited since."""
    plugins(folder, "patches")
    for _ in range(2):
        status, err = run(folder, "plugin", "patches", "three", "--workers", "2")
        assert status == 0, err
        found = shelves(folder / "three")
        assert {s["split"] for s in found if "plugins" not in s} == {"train", "val", "test"}
        assert {s["split"] for s in found if "plugins" in s and "texts" not in s} == set()
        file = folder / "plugins" / "patches.py"
        file.write_text(file.read_text() + "\n# edited\n")


RAISES = """
    class HParams(api.HParams):
        def notes(self, info):
            return 1 / 0

"""
BREAKS = {
    "doubles": "torch.set_default_dtype(torch.float64)",
    "meta": "torch.set_default_device('meta')",
    "leaves": "os._exit(5)",
    "exits": "sys.exit('no licence')",
    "raises": "",
    "swaps": """
def change(register):
    methods = register.args[0].methods
    methods["zero-shot"] = dataclasses.replace(methods["zero-shot"], target=Own)
""",
}


def test_plugins_that_break_planning_at_their_import_cost_their_own_cells(folder: Path) -> None:
    plugins(folder, "good")
    for name, line in BREAKS.items():
        text = MEANS.format(name=name, at_import=line, in_prepare="")
        if name == "swaps":
            text = text.replace("    register(Own)", "    change(register)\n    register(Own)")
        if name == "raises":
            text = text.replace("    kind =", RAISES + "    kind =")
        (folder / "plugins" / f"{name}.py").write_text(text)
    status, err = run(folder, "broken", ",".join((BUILTIN, *BREAKS, "good")), "one")
    assert status == 1
    for name in BREAKS:
        assert f"plugin '{name}'" in err
        assert f"{name}.py" in err
        assert f"method '{name}'" in err
    assert "'good'" not in err
    assert "status 5" in err
    assert "licence" in err
    assert "ZeroDivisionError" in err
    assert "raises.py, line" in err
    assert grid.bits(folder / "broken") == grid.bits(folder / "alone")


def test_code_of_a_model_runs_in_a_process_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run names no plugin; its code is part of the keys of its cells alone."""
    plugins(folder)
    save_own_code(tmp_path, AT_IMPORT)
    source = f"transformers:{tmp_path}+remote-code"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    methods, backbones = "zero-shot,ncm", f"tiny-clip,{source}"
    status, err = run(folder, "model", methods, "five", "--backbones", backbones)
    assert (status, err) == (0, "")
    alone, found = grid.bits(folder / "alone"), grid.bits(folder / "model")
    assert len(found) == 3  # its tokenizer knows none of the classes
    assert len(found.items() & alone.items()) == 1
    made = {r.cell.backbone: r.provenance["backbone"] for r in grid.records(folder / "model")}
    assert made.pop("tiny-clip")["plugin"] == "vipbench"
    [[name, of]] = made.items()
    assert of["plugin"] == name

    trust.name(source)
    spec = RunSpec.parse(
        {"methods": ["ncm"], "datasets": [f"npz:{folder / 'toy.npz'}"], "shots": [1], "seeds": [1],
         "views": "none", "backbones": ["tiny-clip", source], "out": folder / "planned"}
    )  # fmt: skip
    ours, theirs = driver.plan(spec).cells
    assert (ours.plugins, theirs.plugins) == ((), (source,))
    assert {ours.key, theirs.key} < {*found}
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text() + "\n# edited\n")
    again = driver.plan(spec).cells
    assert again[0].key == ours.key
    assert again[1].key != theirs.key


ENDLESS = """
    def for_cell(self, info):
        while True:
            print(info)
            time.sleep(0.001)
"""
LEAVES_A_CHILD = """
if os.fork():
    os._exit(5)
os.setsid()
time.sleep(60)
"""
READS = """
    def backbones(self):
        until = time.monotonic() + 6
        while time.monotonic() < until:
            Path("toy.npz").read_bytes()
            time.sleep(0.01)
        return ()
"""


def test_plugins_whose_planning_never_ends_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the import, in a method's hook, and where a child keeps the pipe of a worker that ended.
    Who reads files for longer than the limit is not cut."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(process, "SILENCE", 4.0)
    plugins(folder, "good")
    hparams = "\n    @dataclasses.dataclass(frozen=True)\n    class HParams(api.HParams):"
    for name, at_import, inside in (
        ("waits", "time.sleep(600)", ""),
        ("loops", "", hparams + ENDLESS.replace("\n", "\n    ")),
        ("leaves", LEAVES_A_CHILD, ""),
        ("reads", "", hparams + READS.replace("\n", "\n    ")),
    ):
        text = MEANS.format(name=name, at_import=at_import, in_prepare="")
        text = text.replace('    kind = "TF"\n', f'    kind = "TF"\n{inside}\n')
        (folder / "plugins" / f"{name}.py").write_text(text)
    spec = RunSpec.parse(
        {"methods": ["zero-shot", "coop[epochs=3]", "waits", "loops", "leaves", "reads", "good"],
         "datasets": [f"npz:{folder / 'toy.npz'}"], "backbones": ["tiny-clip"], "shots": [1],
         "seeds": [1], "views": "none", "plugins_dir": folder / "plugins", "out": folder / "hangs"}
    )  # fmt: skip
    trust.name(folder / "plugins")
    monkeypatch.setenv("SEEN", str(folder / "hangs.seen"))
    found = driver.plan(spec)
    for name, facts in {
        "waits": ("imported", "4 s"),
        "loops": ("for_cell", "4 s"),
        "leaves": ("status 5",),
    }.items():
        [line] = [line for line in found.broken if f"plugin '{name}' ({name}.py)" in line]
        assert all(fact in line for fact in facts), line
    assert {cell.method for cell in found.cells} == {"zero-shot", "coop[epochs=3]", "reads", "good"}


HASHES = """
import vipbench.engine.planning.cells as cells

cells.sha = lambda parts: "f" * 64
"""
MEDDLES = """
import sys

for name, module in list(sys.modules.items()):
    if name.startswith("vipbench_plugin_good_"):
        module.Own.revision = 99
"""


@pytest.mark.parametrize("name", ["hashes", "meddles"])
def test_who_changes_what_is_planned_beside_it_changes_no_cell(folder: Path, name: str) -> None:
    """The first changes built-in cells too, the other none but those of another plugin."""
    plugins(folder, "good")
    text = {"hashes": HASHES, "meddles": MEDDLES}[name]
    (folder / "plugins" / f"{name}.py").write_text(text)
    status, err = run(folder, name, f"{BUILTIN},good", "one")
    assert (status, err) == (0, "")
    assert grid.bits(folder / name) == grid.bits(folder / "alone")


DROPS = """
from vipbench.engine.workers import session
plan_cells = session.plan_cells
session.plan_cells = lambda run, row, *more: (
    [] if row.method.name == "drops" else plan_cells(run, row, *more)
)
"""


STORES = """
from vipbench.plugins import registry
registry._store = lambda *given: None
"""


@pytest.mark.parametrize(
    ("drops", "others"), [(DROPS, ""), (DROPS, f"{BUILTIN},good"), (STORES, f"{BUILTIN},good")]
)
def test_methods_whose_cells_a_plugin_plans_away_are_named(
    folder: Path, drops: str, others: str
) -> None:
    """Alone, and beside what is built in and another plugin, whose cells are done."""
    plugins(folder, *(["good"] if others else []))
    text = MEANS.format(name="drops", at_import=drops, in_prepare="")
    (folder / "plugins" / "drops.py").write_text(text)
    out = f"drops-{bool(others)}-{drops == STORES}"
    status, err = run(folder, out, ",".join(filter(None, (others, "drops"))), "one")
    assert "method 'drops'" in err
    assert "drops.py" in err
    assert "'good'" not in err
    assert status == (1 if others else 2), err
    if others:
        assert grid.bits(folder / out) == grid.bits(folder / "alone")


ENDS = """
from vipbench.engine.workers import session
session.base_record = lambda cell: os._exit(5)
"""


def test_a_plugin_that_is_another_each_time_or_ends_its_worker_is_left_out(folder: Path) -> None:
    plugins(folder, "good")
    ends = MEANS.format(name="ends", at_import=ENDS, in_prepare="")
    varies = MEANS.format(name="varies", at_import="", in_prepare="")
    varies = varies.replace("    kind =", "    revision = time.time_ns()\n    kind =")
    (folder / "plugins" / "ends.py").write_text(ends)
    (folder / "plugins" / "varies.py").write_text(varies)
    status, err = run(folder, "left-out", f"{BUILTIN},ends,good,varies", "one")
    assert status == 1
    assert "'good'" not in err
    assert "status 5" in err
    for name in ("ends", "varies"):
        assert f"plugin '{name}' ({name}.py)" in err
    assert grid.bits(folder / "left-out") == grid.bits(folder / "alone")


def test_a_built_in_method_on_a_plugins_dataset_is_the_plugins_cell(folder: Path) -> None:
    """It has the same images as the toy, whose features it must not spoil."""
    plugins(folder)
    (folder / "plugins" / "ward.py").write_text(WARD)
    toy = f"npz:{folder / 'toy.npz'}"
    status, err = run(folder, "ward", "zero-shot", "four", "--datasets", f"ward,{toy}")
    assert status == 1, err
    [error] = [r.error for r in grid.records(folder / "ward") if r.error is not None]
    assert (error.plugin, error.file) == ("ward", "ward.py")
    assert "zero-shot" in error.message
    alone = grid.bits(folder / "alone")
    found = grid.bits(folder / "ward")
    assert len(found) == 1
    assert found.items() <= alone.items()
