"""The files of plugins: loading single files and entry points, and digests of their code."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from vipbench.errors import UsageError


@dataclass(frozen=True)
class Plugin:
    """Where something registered comes from.

    name: "vipbench" for built-ins, a distribution's entry point, or a file's name. version: of
    the distribution; None for single files. file: the module's file. file_sha256: its digest.
    code_sha256: digest of the file and of the local modules that it imports; of the file alone
    where it imports none. builtin: raises `revision` instead, so that its code is in no key.
    """

    name: str
    version: str | None
    file: Path
    file_sha256: str
    builtin: bool
    code_sha256: str = ""

    def __str__(self) -> str:
        return f"plugin '{self.name}' ({self.file})"


def describe(name: str, version: str | None, module: ModuleType, builtin: bool = False) -> Plugin:
    """The Plugin that a loaded `module` is."""
    file = Path(module.__file__ or "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    code = digest if builtin or not digest else code_digest(file, digest)
    return Plugin(name, version, file, digest, builtin, code)


def provenance(plugin: Plugin) -> Mapping[str, str | None]:
    """What a record says of a plugin; its file by name only, since records travel."""
    return {
        "plugin": plugin.name,
        "version": plugin.version,
        "file": plugin.file.name,
        "file_sha256": plugin.file_sha256,
    }


def plugin_files(folder: Path) -> list[Path]:
    """The single-file plugins of a folder. Raises UsageError where it is none."""
    if not folder.is_dir():
        raise UsageError(f"--plugins-dir {folder} is not a folder; give one that holds *.py files")
    return sorted(p for p in folder.glob("*.py") if not p.name.startswith(("_", "test_")))


def load_file(file: Path) -> ModuleType:
    """Import a single file; modules beside it can be imported by it. Raises UsageError."""
    # A name of its own, so that a drop-in never shadows an installed module of the same name.
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    name = f"vipbench_plugin_{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"plugin '{file.stem}' ({file}) is not a Python file")
    # Last, so that a file beside the plugin never stands in for an installed module.
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        _import_failed(file.stem, str(file), error)
    return module


def load_entry_point(point: EntryPoint) -> ModuleType:
    """Import an installed plugin's module. Raises UsageError."""
    try:
        module = point.load()
    except BaseException as error:
        _import_failed(point.name, point.value, error)
    if not isinstance(module, ModuleType):
        raise UsageError(
            f"plugin '{point.name}' ({point.value}): the entry point gives a "
            f"{type(module).__name__}; it must name a module"
        )
    return module


def _import_failed(name: str, where: str, error: BaseException) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        raise error
    raise UsageError(
        f"plugin '{name}' ({where}) cannot be imported: {type(error).__name__}: {error}; "
        "mend it or take it away"
    ) from error


def code_digest(file: Path, digest: str) -> str:
    """SHA-256 of a plugin's file and of every local module that it imports, directly or not.

    Local is what lies beside the plugin or in its package, and what was imported from anywhere
    but Python's own and its installed packages' folders.
    """
    found = local_modules(file)
    if not found:
        return digest
    whole = hashlib.sha256(digest.encode())
    # By content, not by path: the same plugin in another folder is the same.
    for part in sorted(
        f"{other.name} {hashlib.sha256(other.read_bytes()).hexdigest()}" for other in found
    ):
        whole.update(f"\n{part}".encode())
    return whole.hexdigest()


def local_modules(file: Path) -> list[Path]:
    """The local modules that a plugin's file imports, directly or not; see `code_digest`."""
    found: dict[Path, None] = {}
    waiting = [file.resolve()]
    while waiting:
        for other in _local_imports(waiting.pop()):
            if other != file.resolve() and other not in found:
                found[other] = None
                waiting.append(other)
    return list(found)


def _local_imports(file: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(file, alias.name.split("."), 0)
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            yield from _files_of(file, base, node.level)
            for alias in node.names:
                yield from _files_of(file, [*base, alias.name], node.level)


def _files_of(file: Path, parts: list[str], level: int) -> Iterator[Path]:
    """The local files that importing `parts` from `file` runs: packages on the way and itself."""
    root = file.parent
    for _ in range(level - 1):
        root = root.parent
    for depth in range(0 if level else 1, len(parts) + 1):
        beside = _module_file(root.joinpath(*parts[:depth]))
        if beside is not None:
            yield beside
            continue
        module = sys.modules.get(".".join(parts[:depth])) if not level else None
        source = getattr(module, "__file__", None)
        if source is not None and _is_local(Path(source).resolve()):
            yield Path(source).resolve()


def _module_file(path: Path) -> Path | None:
    for candidate in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate.resolve()
    return None


def _is_local(file: Path) -> bool:
    if file.suffix != ".py":
        return False
    own = Path(__file__).resolve().parents[1]
    paths = sysconfig.get_paths()
    installed = [Path(paths[k]).resolve() for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(file.is_relative_to(folder) for folder in (own, *installed))
