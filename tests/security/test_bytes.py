"""What runs are the bytes whose digests were trusted, wherever else the disk offers others."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backbones.hub_models import save_own_code
from tests.security.conftest import METHOD
from vipbench import trust
from vipbench.engine.workers import driver
from vipbench.errors import UsageError
from vipbench.plugins import files
from vipbench.plugins.registry import load_registry
from vipbench.results import Store
from vipbench.runspec.run import RunSpec

PEEKS = (
    METHOD
    + """
    register(Peeks)

class Peeks(Marked):
    name = "peeks"

    def forward(self, x):
        __import__("li" + "b.hidden")
        return super().forward(x)
"""
)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nothing was named, with an empty list of trusted code."""
    monkeypatch.setenv("VIPBENCH_CONFIG", str(tmp_path / "config"))
    forget(monkeypatch)
    monkeypatch.setattr(files, "_beside", files._Beside())
    monkeypatch.setattr(sys, "path", [*sys.path])
    finders = [finder for finder in sys.meta_path if not isinstance(finder, files._Beside)]
    monkeypatch.setattr(sys, "meta_path", finders)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "helpers" in name or "hidden" in name or "lib" in name.split("."):
            del sys.modules[name]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was named; what is trusted stays so."""
    monkeypatch.setattr(trust, "_here", trust._Process())


def plugin(folder: Path, text: str, helpers: str = "import torch\nzeros = torch.zeros\n") -> Path:
    """A folder with a plugin that begins with `text`, and what it imports."""
    folder.mkdir()
    (folder / "marked.py").write_text(text + METHOD)
    (folder / "helpers.py").write_text(helpers)
    return folder


def test_a_compiled_file_that_claims_to_be_the_source_is_not_run(tmp_path: Path) -> None:
    folder = plugin(tmp_path / "p", "")
    for name in ("helpers", "marked"):
        source = folder / f"{name}.py"
        text, state = source.read_text(), source.stat()
        source.write_text(f"raise SystemExit('other'){' ' * 1000}"[: len(text)])
        os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
        py_compile.compile(str(source), doraise=True)
        source.write_text(text)
        os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert Path(importlib.util.cache_from_source(str(source))).is_file()
    trust.name(folder)
    assert "marked" in load_registry(folder).methods


def test_a_module_changed_after_the_look_at_it_runs_as_it_was(tmp_path: Path) -> None:
    change = (
        "import pathlib, sys\nbeside = pathlib.Path(__file__).parent\n"
        "(beside / 'helpers.py').write_text('raise SystemExit')\n"
        "sys.path.insert(0, str(beside))\n"
    )
    folder = plugin(tmp_path / "p", change)
    trust.name(folder)
    assert "marked" in load_registry(folder).methods


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("lib/hidden.py", "import importlib\nimportlib.import_module('li' + 'b.hidden')\n"),
        ("hidden.py", "__import__('hid' + 'den')\n"),
        ("hidden.py", "try:\n    __import__('hid' + 'den')\nexcept Exception:\n    pass\n"),
    ],
)
def test_a_module_that_no_import_names_is_asked_for_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str
) -> None:
    folder = plugin(tmp_path / "p", text)
    hidden = folder / file
    hidden.parent.mkdir(exist_ok=True)
    hidden.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    for path in folder.glob("[mh]*.py"):
        if path != hidden:
            trust._keep([(str(path), trust.sha256(path.read_bytes()))])
    with pytest.raises(trust.UntrustedCodeError) as caught:
        load_registry(folder)
    assert str(hidden) in str(caught.value)
    assert trust.sha256(hidden.read_bytes()) in str(caught.value)
    assert not (tmp_path / "mark").exists()
    forget(monkeypatch)
    trust.name(folder)
    load_registry(folder)
    assert (tmp_path / "mark").exists()


def test_code_that_a_cell_meets_costs_that_cell(tmp_path: Path) -> None:
    folder = plugin(tmp_path / "p", "")
    (folder / "marked.py").write_text(PEEKS)
    for path in folder.glob("*.py"):
        trust._keep([(str(path), trust.sha256(path.read_bytes()))])
    hidden = folder / "lib" / "hidden.py"
    hidden.parent.mkdir()
    hidden.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    spec = RunSpec.parse(
        {"methods": ["peeks", "marked", "zero-shot"], "datasets": ["synthderm"],
         "backbones": ["tiny-clip"], "shots": [1], "seeds": [1], "out": tmp_path / "out",
         "plugins_dir": folder}
    )  # fmt: skip
    outcome = driver.run(spec)
    assert (outcome.done, outcome.failed) == (2, 1)
    with Store(tmp_path / "out", readonly=True) as store:
        errors = {record.cell.method: record.error for record in store.records()}
    assert errors["marked"] is errors["zero-shot"] is None
    assert errors["peeks"] is not None
    for fact in (str(hidden), trust.sha256(hidden.read_bytes()), "--allow-code"):
        assert fact in errors["peeks"].message
    assert not (tmp_path / "mark").exists()


def test_no_compiled_module_of_a_folder_that_was_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plugin(tmp_path / "p", "import hidden\n")
    trust.name(folder)
    with pytest.raises(UsageError, match="hidden"):
        load_registry(folder)
    source = tmp_path / "hidden.py"
    source.write_text("1 / 0")
    py_compile.compile(str(source), str(folder / "hidden.pyc"))
    importlib.invalidate_caches()
    forget(monkeypatch)
    with pytest.raises(UsageError, match=r"hidden\.pyc"):
        load_registry(folder)


def test_others_may_not_write_the_list(tmp_path: Path) -> None:
    folder = plugin(tmp_path / "p", "")
    trust.name(folder)
    load_registry(folder)
    trust.trust_file().chmod(0o666)
    with pytest.raises(UsageError, match="others"):
        trust.trusted()


def test_a_list_that_cannot_be_kept_costs_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIPBENCH_CONFIG", str(tmp_path / "file" / "config"))
    folder = plugin(tmp_path / "p", "")
    trust.name(folder)
    assert "marked" in load_registry(folder).methods
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_code_of_a_model_runs_from_the_trusted_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own cache of modules compares files by size and time alone."""
    from transformers import dynamic_module_utils

    modules = tmp_path / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.syspath_prepend(str(modules))
    folder = tmp_path / "model"
    folder.mkdir()
    save_own_code(folder)
    source = f"transformers:{folder}+remote-code"
    with pytest.raises(trust.UntrustedCodeError, match=r"own\.py"):
        load_registry().backbone(source)
    trust.name(source)
    load_registry().backbone(source)
    [kept] = modules.rglob("own.py")
    state, code = kept.stat(), kept.read_text()
    kept.write_text("1 / 0".ljust(len(code)))
    os.utime(kept, ns=(state.st_atime_ns, state.st_mtime_ns))
    for name in [name for name in sys.modules if "vipbench_" in name and name.endswith("own")]:
        del sys.modules[name]
    forget(monkeypatch)
    load_registry().backbone(source)
    assert kept.read_text() == code
    (folder / "own.py").write_text(code + "#")
    with pytest.raises(trust.UntrustedCodeError, match=trust.sha256((code + "#").encode())):
        load_registry().backbone(source)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("name", ["other/repo--own.Pair", "../other/own.Pair", "sub/own.Pair"])
def test_code_of_another_place_is_refused(tmp_path: Path, file: str, name: str) -> None:
    save_own_code(tmp_path)
    path = tmp_path / file
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [name, None]}}
    path.write_text(json.dumps(config))
    source = f"transformers:{tmp_path}+remote-code"
    trust.name(source)
    with pytest.raises(UsageError, match="outside") as caught:
        load_registry().backbone(source)
    assert name in str(caught.value)
    assert file in str(caught.value)
