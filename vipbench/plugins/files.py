"""The files of plugins: loading single files and entry points, and digests of their code.

Single files and what they import from beside them run from the very bytes whose digests were
allowed: never from compiled files, nor from what was written to the disk afterwards.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import EntryPoint
from pathlib import Path
from types import CodeType, ModuleType
from typing import NoReturn

from vipbench import trust
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
    found = sorted(p for p in folder.glob("*.py") if not p.name.startswith(("_", "test_")))
    for name in (p.name for p in found if not p.name.isprintable()):
        raise UsageError(
            f"--plugins-dir {folder} holds {os.fsencode(name)!r}, a name that is not UTF-8 or not "
            "printable; rename it"
        )
    return found


def allowed_code(files: Sequence[Path], asked: Path) -> dict[Path, bytes]:
    """The content of plugins' files and of what they import from beside them, where all of it may
    run. asked: the folder or file that the user or a suite named; see `vipbench.trust`.

    From now on, modules in the plugins' folder are imported from these contents alone; what else
    lies there is asked for when it is imported. Raises UntrustedCodeError.
    """
    code = require_code(files, asked)
    for folder, contents in code.items():
        _beside.folders[folder] = (asked, contents)
        # Last, so that a file beside the plugin never stands in for an installed module.
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    if _beside not in sys.meta_path:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _beside)
    return {file: content for contents in code.values() for file, content in contents.items()}


def require_code(files: Sequence[Path], asked: Path) -> dict[Path, dict[Path, bytes]]:
    """As `allowed_code`, folder by folder; nothing is prepared for imports."""
    folders: dict[Path, list[Path]] = {}
    for file in map(Path.resolve, files):
        folders.setdefault(file.parent, []).append(file)
    code = {folder: _code_beside(folder, some) for folder, some in folders.items()}
    digests = [
        (str(file), trust.sha256(content))
        for contents in code.values()
        for file, content in contents.items()
    ]
    what = f"the plugin {asked}" if asked.suffix == ".py" else f"the code of the plugins in {asked}"
    trust.require(what, asked, digests)
    return code


def _code_beside(folder: Path, files: Sequence[Path]) -> dict[Path, bytes]:
    """Of `files`, and of every module and whole package in `folder` that these name in an import:
    path -> content."""
    found: dict[Path, bytes] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found[file] = file.read_bytes()
        for name in _imported(found[file]):
            if _is_elsewhere(name, folder):
                continue
            module, package = folder / f"{name}.py", folder / name
            waiting += [module] if module.is_file() else []
            waiting += filter(Path.is_file, package.rglob("*.py")) if package.is_dir() else []
    return {file: found[file] for file in sorted(found)}


def _is_elsewhere(name: str, folder: Path) -> bool:
    """Whether importing `name` is known not to reach `folder`, which comes last."""
    source = getattr(sys.modules.get(name), "__file__", None)
    there = source is not None and not Path(source).resolve().is_relative_to(folder)
    return there or name in sys.stdlib_module_names


def _imported(code: bytes) -> set[str]:
    """The first parts of the absolute names that `code` imports."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


class _Beside(MetaPathFinder):
    """Stands before the finder of files, and takes over whatever that finds in a plugins' folder.

    folders: what asked for the folder, and the content of the files that may run.
    """

    def __init__(self) -> None:
        self.folders: dict[Path, tuple[Path, dict[Path, bytes]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder. Raises UntrustedCodeError, and ImportError for compiled modules."""
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return spec
        file = Path(spec.origin)
        for folder, (asked, code) in self.folders.items():
            if not file.is_relative_to(folder):
                file = file.resolve()
            if file.is_relative_to(folder):
                return _source_spec(spec, file, asked, code)
        return spec


def _source_spec(
    found: ModuleSpec, file: Path, asked: Path, code: dict[Path, bytes]
) -> ModuleSpec | None:
    if not isinstance(found.loader, SourceFileLoader):
        if trust.named(asked):
            return found
        raise ImportError(f"{file} is compiled; of a plugins' folder only *.py files are imported")
    if file not in code:
        data = file.read_bytes()
        if not trust.named(asked):
            trust.require(f"a module of {asked}", asked, [(str(file), trust.sha256(data))])
        code[file] = data
    return importlib.util.spec_from_file_location(
        found.name,
        file,
        loader=_Source(found.name, str(file), code[file]),
        submodule_search_locations=found.submodule_search_locations,
    )


class _Source(SourceFileLoader):
    """Runs the content that it was given, whatever the file and its compiled form hold by now."""

    def __init__(self, fullname: str, path: str, content: bytes) -> None:
        super().__init__(fullname, path)
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        """See SourceFileLoader."""
        code: CodeType = self.source_to_code(self._content, self.path)
        return code

    def get_data(self, path: str) -> bytes:
        """See SourceFileLoader."""
        return self._content if path == self.path else super().get_data(path)


_beside = _Beside()


def load_file(file: Path, content: bytes) -> ModuleType:
    """Import a single file from its `content`; see `allowed_code`. Raises UsageError."""
    # A name of its own, so that a drop-in never shadows an installed module of the same name.
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    name = f"vipbench_plugin_{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(
        name, file, loader=_Source(name, str(file), content)
    )
    assert spec is not None
    assert spec.loader is not None
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
    if isinstance(error, KeyboardInterrupt | trust.UntrustedCodeError):
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
