"""Discovery: single files, what they may not do, and what the errors name."""

from __future__ import annotations

import base64
import hashlib
import importlib
import re
import sys
from pathlib import Path

import pytest

from vipbench import methods
from vipbench.errors import UsageError
from vipbench.plugins import files
from vipbench.plugins.registry import Kind, load_registry

METHOD = '''
"""A method that always says the same."""
import torch
import vipbench
from vipbench import api

class Same(api.Method):
    """Zeros for every class."""
    name = "{name}"
    kind = "TF"
    uses_support = False
    bibtex = "@misc{{same}}"

    def forward(self, x):
        return torch.zeros(len(x), self.task.n_classes)

@vipbench.hookimpl
def register_methods(register):
    register(Same)
'''


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def refused(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_registry(folder)
    return str(caught.value)


def test_builtins_register_through_the_same_hooks() -> None:
    registry = load_registry()
    assert {"zero-shot", "coop", "cocoop", "vip", "linear-probe"} <= set(registry.methods)
    assert {"tiny-clip", "openclip"} <= set(registry.backbones)
    assert {"synthderm", "npz", "folder"} <= set(registry.datasets)
    assert all(found.plugin.builtin for found in registry.methods.values())


def test_the_citations_of_builtins_are_in_one_file_by_name(tmp_path: Path) -> None:
    text = Path(methods.__path__[0], "methods.bib").read_text(encoding="utf-8")
    named = [name for line in re.findall(r"^% (.*)$", text, re.M) for name in line.split(", ")]
    builtin = load_registry().methods
    assert sorted(named) == sorted(set(builtin) - {"supervised"})  # no paper
    for name, found in builtin.items():
        entry = found.target.bibtex
        assert entry.count("@") == entry.count("\n@") + (name in named), name
        assert entry.count("{") == entry.count("}"), name
    assert builtin["coop"].target.bibtex.startswith("@article{zhou2022learning,")
    # A plugin gives its own.
    write(tmp_path, "same.py", METHOD.format(name="same"))
    assert load_registry(tmp_path).methods["same"].target.bibtex == "@misc{same}"


def test_a_module_without_hooks_registers_the_method_classes_it_defines(tmp_path: Path) -> None:
    text = METHOD.format(name="same")
    text = text[: text.index("@vipbench.hookimpl")]
    others = """
from vipbench.methods.coop import CoOp


class _Base(Same):
    name = "base"


class Other(_Base):
    name = "other"
"""
    write(tmp_path, "mine.py", text + others)
    mine = {n: f.plugin for n, f in load_registry(tmp_path).methods.items() if not f.plugin.builtin}
    assert mine.keys() == {"same", "other"}
    assert {plugin.name for plugin in mine.values()} == {"mine"}
    write(tmp_path, "mine.py", text.replace('kind = "TF"', ""))
    assert "'kind'" in refused(tmp_path)


def test_single_file(tmp_path: Path) -> None:
    file = write(tmp_path, "same.py", METHOD.format(name="same"))
    write(tmp_path, "_helper.py", "raise SystemExit")
    write(tmp_path, "notes.txt", "no plugin")
    found = load_registry(tmp_path).methods["same"]
    assert (found.plugin.name, found.plugin.file, found.plugin.builtin) == ("same", file, False)
    assert found.help == "Zeros for every class."


def test_nothing_is_taken_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "same.py", METHOD.format(name="same"))
    monkeypatch.chdir(tmp_path)
    assert "same" not in load_registry().methods


def test_a_file_never_shadows_a_module(tmp_path: Path) -> None:
    write(tmp_path, "random.py", METHOD.format(name="same"))
    load_registry(tmp_path)
    import random

    assert hasattr(random, "Random")


@pytest.mark.parametrize("name", ["coop", "same"])
def test_duplicate_names_name_both(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a_first.py", METHOD.format(name="same"))
    write(tmp_path, "b_second.py", METHOD.format(name=name))
    message = refused(tmp_path)
    assert f"'{name}'" in message
    assert "b_second.py" in message
    assert ("coop.py" if name == "coop" else "a_first.py") in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nothing_of_the_kind", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("1 / 0", "ZeroDivisionError"),
        (METHOD.format(name="x").replace("register_methods", "register_method"), "register_method"),
        (METHOD.format(name="x").replace("@vipbench.hookimpl", ""), "vipbench.hookimpl"),
        (METHOD.format(name="x").replace("register(Same)", "register(3)"), "Method"),
        (METHOD.format(name="x").replace("register(Same)", "1 / 0"), "ZeroDivisionError"),
        (METHOD.format(name="Not Legal"), "lowercase"),
        (METHOD.format(name="x").replace('kind = "TF"', ""), "'kind'"),
        (METHOD.format(name="x").replace("(register)", "(wrong)"), "wrong"),
    ],
)
def test_errors_name_plugin_and_file(tmp_path: Path, text: str, expected: str) -> None:
    file = write(tmp_path, "mine.py", text)
    message = refused(tmp_path)
    assert "'mine'" in message
    assert str(file) in message
    assert expected in message


def test_folder_that_is_none(tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'}" in refused(tmp_path / "absent")


def test_unknown_names_name_close_matches() -> None:
    registry = load_registry()
    for kind, wrong, meant in (
        ("method", "cocop", "cocoop"),
        ("backbone", "tinyclip", "tiny-clip"),
        ("dataset", "syntderm", "synthderm"),
    ):
        with pytest.raises(UsageError, match=f"did.*'{meant}'"):
            registry.get(kind, wrong)  # type: ignore[arg-type]


def code_of(folder: Path) -> str:
    return load_registry(folder).methods["same"].plugin.code_sha256


@pytest.mark.parametrize(
    ("kind", "given", "meant"),
    [
        ("backbone", "ViT-B/16", "openclip:ViT-B-16/openai"),
        ("backbone", "vit_b_32", "openclip:ViT-B-32/openai"),
        ("backbone", "resnet50", "timm:resnet50"),
        ("dataset", "images", "folder:images"),
        ("dataset", "rows.CSV", "csv:rows.CSV"),
    ],
)
def test_what_is_no_source_is_answered_with_the_source(
    kind: Kind, given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "rows.CSV").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{re.escape(given)}.*{re.escape(repr(meant))}"):
        load_registry().get(kind, given)


def test_a_long_list_of_names_is_not_printed() -> None:
    with pytest.raises(UsageError) as caught:
        load_registry().backbone("timm:resnot50")
    assert "'resnet50'" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_digest_of_a_plugins_code_covers_its_local_imports(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    file = write(folder, "same.py", METHOD.format(name="same"))
    alone = load_registry(folder).methods["same"].plugin
    assert alone.code_sha256 == alone.file_sha256
    write(folder, "_unused.py", "A = 1")
    assert code_of(folder) == alone.code_sha256
    inner = folder / "same_parts"
    inner.mkdir()
    write(inner, "__init__.py", "")
    write(inner, "deep.py", "from .deeper import B")
    write(inner, "deeper.py", "B = 1")
    text = "def later():\n    from same_parts import deep\n    return deep\n"
    file.write_text(METHOD.format(name="same") + text)
    first = code_of(folder)
    assert first != load_registry(folder).methods["same"].plugin.file_sha256
    write(inner, "deeper.py", "B = 2")
    assert code_of(folder) != first
    write(inner, "deeper.py", "B = 1")
    assert code_of(folder) == first
    # The same plugin in another folder is the same.
    other = folder.rename(tmp_path / "elsewhere")
    assert code_of(other) == first


def test_a_plugin_can_import_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "_beside_same.py", "NAME = 'same'")
    text = "from _beside_same import NAME\n" + METHOD.replace('"{name}"', "NAME")
    write(tmp_path, "same.py", text)
    assert "same" in load_registry(tmp_path).methods


class Installed:
    """A distribution with an entry point, in a folder of `sys.path`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("same_dist/__init__.py", "")
        self.write("same_dist/hooks.py", "from same_dist.deep import method\n" + DIST)
        self.write("same_dist/deep/__init__.py", "def method():\n    return 1\n")
        self.write("same_dist/table.json", "[1]")
        info = folder / "same_dist-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text("[vipbench]\nsame = same_dist.hooks\n")
        self.release("1.0")

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def release(self, version: str) -> None:
        """METADATA and RECORD, as an installer writes them."""
        info = self.folder / "same_dist-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: same-dist\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        (info / "INSTALLER").write_text(str(self.folder))
        lines = [f"{info.name}/RECORD,,", "../../bin/same,sha256=AAAA,3"]
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and file.name != "RECORD":
                digest = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest())
                name = file.relative_to(self.folder).as_posix()
                lines.append(f"{name},sha256={digest.decode().rstrip('=')},1")
        (info / "RECORD").write_text("\n".join(lines) + "\n")

    def code(self) -> str:
        importlib.invalidate_caches()
        for name in [n for n in sys.modules if n.split(".")[0] == "same_dist"]:
            del sys.modules[name]
        return load_registry().methods["same"].plugin.code_sha256


DIST = METHOD.format(name="same")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    (tmp_path / "lib").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "lib")
    files._library_folders.cache_clear()
    return Installed(tmp_path / "lib")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("same_dist/deep/__init__.py", "def method():\n    return 2\n"),
        ("same_dist/unused.py", "A = 1\n"),
        ("same_dist/table.json", "[2]"),
    ],
)
def test_an_upgrade_of_a_distribution_is_other_code(
    installed: Installed, name: str, text: str
) -> None:
    first = installed.code()
    installed.release("1.0")
    assert installed.code() == first
    installed.write(name, text)
    installed.release("1.0")
    assert installed.code() != first


def test_a_distributions_code_counts_as_it_lies_there(installed: Installed) -> None:
    """Its version counts; where it was installed does not; RECORD may be older than the code."""
    first = installed.code()
    (installed.folder / "same_dist-1.0.dist-info" / "INSTALLER").write_text("another")
    assert installed.code() == first
    installed.write("same_dist/deep/__init__.py", "def method():\n    return 3\n")
    changed = installed.code()
    assert changed != first
    (installed.folder / "same_dist-1.0.dist-info" / "RECORD").unlink()
    unlisted = installed.code()
    assert unlisted != first
    # Without RECORD, as where it is editable, all files of its package are looked at.
    installed.write("same_dist/table.json", "[2]")
    assert installed.code() != unlisted
    installed.write("same_dist/table.json", "[1]")
    assert installed.code() == unlisted
    installed.write("same_dist/deep/__init__.py", "def method():\n    return 1\n")
    installed.release("2.0")
    assert installed.code() not in (first, changed)


def test_a_library_elsewhere_on_the_path_is_no_local_code(
    installed: Installed, tmp_path: Path
) -> None:
    file = write(tmp_path, "user.py", "import same_dist.deep\nimport torch\nimport own_helper\n")
    (tmp_path / "code").mkdir()
    own = write(tmp_path / "code", "own_helper.py", "")
    sys.path.append(str(own.parent))
    try:
        installed.code()
        assert files.local_modules(file) == [own]
    finally:
        sys.path.remove(str(own.parent))
