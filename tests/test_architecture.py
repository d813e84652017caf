"""The directions of the arrows: what may import what, and what no file may do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests.cli.test_help import HEAVY
from vipbench.engine.workers.messages import Command, Event, Request

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "vipbench"

# Rooms of one layer may import each other as long as no circle comes of it; nobody imports up.
LAYERS = (
    {
        "alive",
        "errors",
        "files",
        "fetching",
        "images",
        "results",
        "revisions",
        "runspec",
        "text",
        "trust",
    },
    {"vipbench", "api", "hookspecs"},  # "vipbench" is __init__.py: the hook marker and version
    {"backbones", "methods", "datasets", "symptoms", "trackers"},
    {"plugins"},
    {"engine"},
    {"cli", "testing", "__main__"},
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# The rooms inside a layer, lowest first; those of one set do not know each other.
INSIDE: dict[str, tuple[set[str], ...]] = {
    "engine": (
        {"training", "given"},
        {"features"},
        {"planning"},
        {"evaluation"},
        {"workers"},
        {"explain", "cluster"},
    ),
    "results": (
        {"records"},
        {"stats", "store"},
        {"tables", "sharing"},
        {"figures", "compare", "leaderboard"},
    ),
}
# Folders that hold one file for each method or command grow with them.
MAY_GROW = {"methods", "cli", "cli/commands"}
MOST_FILES = 18
# Whatever answers before a run, or only reads results, must not wait for torch.
TORCH_FREE = [
    *sorted(LAYERS[0]),
    "hookspecs",
    "trackers",
    "engine.run",
    "results.results",
    "cli",
    "__main__",
]


def files(*folders: Path) -> list[Path]:
    return sorted(f for folder in folders for f in folder.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """vipbench.engine.workers.driver -> engine; vipbench -> vipbench."""
    return [*module.split("."), "vipbench"][1] if "." in module else module


def for_typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, typing: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if for_typing_only(child) and not typing:
            continue
        yield child
        yield from walk(child, typing)


def imports(file: Path, typing: bool = True) -> Iterator[tuple[str, int]]:
    """Full module names under vipbench that `file` imports, anywhere in it, with the line."""
    module = module_of(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in walk(ast.parse(file.read_text()), typing):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *filter(None, [base])])
            # `from vipbench import api` imports a module, `from vipbench import hookimpl` not.
            found = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else base for name in found]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "vipbench":
                yield name, node.lineno


def is_module(name: str) -> bool:
    path = REPO.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_every_room_has_its_layer() -> None:
    rooms = {room_of(module_of(file)) for file in files(PACKAGE)}
    assert rooms <= RANK.keys(), f"name the layer of {sorted(rooms - RANK.keys())} in LAYERS"


def test_the_page_draws_every_room_and_message() -> None:
    page = (REPO / "docs" / "architecture.md").read_text()
    tree, messages = page.split("vipbench/\n")[1].split("```")[0], page.split("## Messages")[1]
    folders = [f for f in PACKAGE.rglob("*") if f.is_dir() and [*f.glob("*.py")]]
    beside = [f.stem for at in (PACKAGE, PACKAGE / "engine") for f in at.glob("[a-z]*.py")]
    named = set(re.findall(r"\w+", tree))
    assert {folder.name for folder in folders} | {*beside} <= named
    drawn = (*get_args(Command), *get_args(Event), Request)
    assert {kind.__name__ for kind in drawn} <= set(re.findall(r"\w+", messages))


def test_imports_never_go_up() -> None:
    wrong = []
    for file in files(PACKAGE):
        room = room_of(module_of(file))
        # hookspecs names the contracts' types, for a type checker alone.
        for name, line in imports(file, typing=False):
            if RANK[room_of(name)] > RANK[room]:
                wrong.append(f"{file.relative_to(REPO)}:{line} ({room}) imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("layer", INSIDE)
def test_rooms_inside_a_layer_import_only_those_before_them(layer: str) -> None:
    rank = {room: i for i, rooms in enumerate(INSIDE[layer]) for room in rooms}
    folders = {f.parent.name for f in (PACKAGE / layer).glob("*/__init__.py")}
    assert folders == rank.keys(), f"name the place of {folders ^ rank.keys()} in INSIDE"
    wrong = []
    for room in rank:
        for file in files(PACKAGE / layer / room):
            for name, line in imports(file):
                other = [*name.split("."), "", ""][2] if room_of(name) == layer else ""
                if other in rank and other != room and rank[other] >= rank[room]:
                    wrong.append(f"{file.relative_to(REPO)}:{line} ({room}) imports {name}")
    assert not wrong, "\n".join(wrong)


def folders_of_the_package() -> list[Path]:
    return [f.parent for f in files(PACKAGE) if f.name == "__init__.py"]


@pytest.mark.parametrize("folder", folders_of_the_package(), ids=lambda f: str(f.relative_to(REPO)))
def test_files_and_folders_form_no_circle(folder: Path) -> None:
    """Imports inside functions and under TYPE_CHECKING count too: a reader follows them."""
    package = module_of(folder / "__init__.py")
    arrows: dict[str, set[str]] = {}
    for file in files(folder):
        # A folder's __init__.py is imported before anything in it.
        if file == folder / "__init__.py":
            continue
        node = file.relative_to(folder).with_suffix("").parts[0]
        uses = arrows.setdefault(node, set())
        for name, _ in imports(file):
            if name.startswith(f"{package}."):
                uses.add(name.removeprefix(f"{package}.").split(".")[0])
        uses.discard(node)
    while arrows:
        free = [node for node, uses in arrows.items() if not uses & arrows.keys()]
        assert free, f"a circle in {folder.relative_to(REPO)} among {arrows}"
        for node in free:
            del arrows[node]


@pytest.mark.parametrize("folder", folders_of_the_package(), ids=lambda f: str(f.relative_to(REPO)))
def test_no_folder_is_crowded(folder: Path) -> None:
    held = [f for f in folder.glob("*.py") if f.name != "__init__.py"]
    if str(folder.relative_to(PACKAGE)) not in MAY_GROW:
        assert len(held) <= MOST_FILES, f"{folder.relative_to(REPO)} holds {len(held)} files"


def test_options_of_commands_import_nothing_heavy() -> None:
    """`vipbench run --help` imports cli/*.py alone; what commands do stands in cli/commands/."""
    for file in (PACKAGE / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            bad = {n.split(".")[0] for n in names} & set(HEAVY)
            assert not bad, f"{file.relative_to(REPO)}: {sorted(bad)} would be imported for --help"


def test_the_engine_imports_no_concrete_plugin() -> None:
    concrete = {"methods", "backbones", "datasets"}
    for file in files(PACKAGE / "engine"):
        for name, line in imports(file):
            assert room_of(name) not in concrete, f"{file.name}:{line} imports {name}"


def test_only_the_messages_of_the_engine_encode_bytes() -> None:
    naming = {file.name for file in files(PACKAGE / "engine") if "base64" in file.read_text()}
    assert naming == {"messages.py"}


def test_built_ins_do_not_know_the_engine() -> None:
    for room in ("methods", "backbones", "datasets", "symptoms", "api"):
        for file in files(PACKAGE / room):
            for name, line in imports(file):
                assert room_of(name) != "engine", f"{file.name}:{line} imports {name}"


def test_nothing_in_the_package_imports_the_extensions() -> None:
    for file in files(PACKAGE):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            bad = [n for n in names if n.split(".")[0] in ("plugins", "tests", "benchmarks")]
            assert not bad, f"{file}:{node.lineno} imports {bad}"


def unsafe(node: ast.AST) -> str | None:
    """Why a call may run code out of a data file, or None."""
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    if called in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "os.system"):
        return called
    given = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
    if given.get("allow_pickle") == "True" or given.get("shell") == "True":
        return ast.unparse(node)
    if called.endswith("torch.load") and given.get("weights_only") != "True":
        return f"{called} without weights_only=True"
    if called == "yaml.load" and "Safe" not in given.get("Loader", ""):
        return f"{called} without a safe loader"
    return None


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_check_for_unsafe_calls_sees(code: str) -> None:
    assert unsafe(ast.parse(code, mode="eval").body)


def test_no_file_runs_code_out_of_data() -> None:
    for file in files(PACKAGE, REPO / "plugins"):
        for node in ast.walk(ast.parse(file.read_text())):
            reason = unsafe(node)
            assert reason is None, f"{file.relative_to(REPO)}:{node.lineno}: {reason}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_these_import_no_torch(module: str) -> None:
    name = "vipbench" if module == "vipbench" else f"vipbench.{module}"
    code = f"import sys, {name}; print(sorted({{'torch', 'open_clip', 'timm'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"{name} imports torch"
