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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import NoReturn

from vipbench import trust
from vipbench.errors import UsageError

ENTRY_POINT_GROUP = "vipbench"

# What of a distribution's metadata every installation of it has alike.
OF_EVERY_INSTALLATION = ("METADATA", "entry_points.txt")


@dataclass(frozen=True)
class Plugin:
    """Where something registered comes from.

    name: "vipbench" for built-ins, a distribution's entry point, or a file's name. version: of
    the distribution; None for single files. file: the module's file. file_sha256: its digest.
    code_sha256: digest of the file and of the local modules that it imports, of the file alone
    where it imports none; of a distribution also of all that it installed. builtin: raises
    `revision` instead, so that its code is in no key. source: names it among all plugins. Code of a
    model's repository is one too, whose source is that of the backbone.
    """

    name: str
    version: str | None
    file: Path
    file_sha256: str
    builtin: bool
    code_sha256: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"plugin '{self.name}' ({self.file})"


def every_source(
    plugins_dir: Path | None = None, one: Path | None = None
) -> dict[str, EntryPoint | Path]:
    """The users' plugins: source -> what to load, see `Plugin.source`. one: the only file. Raises
    UsageError."""
    found: dict[str, EntryPoint | Path] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        owner = point.dist.name if point.dist else point.name
        found[f"{owner}:{point.name}"] = point
    files = [] if plugins_dir is None else plugin_files(plugins_dir)
    for file in files if one is None else [one]:
        found[file.name] = file
    return found


def describe(
    name: str,
    version: str | None,
    module: ModuleType,
    builtin: bool = False,
    distribution: Distribution | None = None,
) -> Plugin:
    """The Plugin that a loaded `module` is. distribution: that installed it."""
    file = Path(module.__file__ or "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    code = digest
    if not builtin and digest:
        parts = [] if distribution is None else installed_parts(distribution, file)
        code = code_digest(file, digest, parts)
    return Plugin(name, version, file, digest, builtin, code)


_loaded: dict[str, Plugin] = {}


def loaded_plugins() -> Collection[Plugin]:
    """The users' plugins whose code this process has run."""
    return _loaded.values()


def remember(plugin: Plugin) -> None:
    """See `loaded_plugins`."""
    _loaded[plugin.source] = plugin


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
            if _is_outside(name, folder):
                continue
            module, package = folder / f"{name}.py", folder / name
            waiting += [module] if module.is_file() else []
            waiting += filter(Path.is_file, package.rglob("*.py")) if package.is_dir() else []
    return {file: found[file] for file in sorted(found)}


def _is_outside(name: str, folder: Path) -> bool:
    """Whether importing `name` is known not to reach `folder`, which comes last."""
    source = getattr(sys.modules.get(name), "__file__", None)
    there = source is not None and not Path(source).resolve().is_relative_to(folder)
    return there or name in sys.stdlib_module_names


def _imported(code: bytes) -> set[str]:
    """The first parts of the absolute names that `code` imports."""
    return {parts[0] for parts, level in _imports_of(code) if not level}


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
        if _is_installed(file):  # an environment may lie within a folder of plugins
            return spec
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
        raise ImportError(f"{file} is compiled; only *.py files of a plugins folder are imported")
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
        "fix or remove it"
    ) from error


def code_digest(file: Path, digest: str, parts: Iterable[str] = ()) -> str:
    """SHA-256 of a plugin's file, of every local module that it imports, directly or not, and of
    `parts`.

    Local is what lies beside the plugin or in its package, and what was imported from anywhere
    but Python's own and its installed packages' folders.
    """
    # By content, not by path: the same plugin in another folder is the same.
    every = sorted({*(f"{f.name} {_sha256(f)}" for f in local_modules(file)), *parts})
    if not every:
        return digest
    whole = hashlib.sha256(digest.encode())
    for part in every:
        whole.update(f"\n{part}".encode())
    return whole.hexdigest()


def installed_parts(distribution: Distribution, file: Path) -> list[str]:
    """Name and digest of each file of a distribution: code by its content, other files as RECORD
    has them. Of one that is installed without them (editable, or by a tool that keeps no RECORD)
    all files of the package that `file` belongs to.

    Left out is what another installation of the same distribution may have otherwise.
    """
    found = []
    for part in distribution.files or ():
        if part.parts[0] == ".." or part.suffix == ".pyc" or "__pycache__" in part.parts:
            continue
        if part.parts[0].endswith(".dist-info") and part.name not in OF_EVERY_INSTALLATION:
            continue
        where = Path(str(distribution.locate_file(part)))
        recorded = part.hash is not None and part.suffix != ".py"
        if recorded or where.is_file():
            found.append(f"{part} {part.hash.value if recorded and part.hash else _sha256(where)}")
    root = file.parent
    if not (root / "__init__.py").is_file():
        return found
    while (root.parent / "__init__.py").is_file():
        root = root.parent
    listed = any(part.startswith(f"{root.name}/") for part in found)
    for other in sorted(root.rglob("*.py" if listed else "*")):
        if other.is_file() and other.suffix != ".pyc":
            found.append(f"{other.relative_to(root.parent).as_posix()} {_sha256(other)}")
    return list(dict.fromkeys(found))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


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
    for parts, level in _imports_of(file.read_bytes()):
        yield from _files_of(file, parts, level)


@lru_cache(maxsize=128)
def _imports_of(code: bytes) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Names and levels of all imports in a file of code; none where it is not valid."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return ()
    found: list[tuple[tuple[str, ...], int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(tuple(alias.name.split(".")), 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            found.append((base, node.level))
            found += [((*base, alias.name), node.level) for alias in node.names]
    return tuple(dict.fromkeys(found))


def _files_of(file: Path, parts: Sequence[str], level: int) -> Iterator[Path]:
    """The local files that importing `parts` from `file` runs: packages on the way and itself."""
    root = file.parent
    for _ in range(level - 1):
        root = root.parent
    for depth in range(0 if level else 1, len(parts) + 1):
        beside = _module_file(root.joinpath(*parts[:depth]))
        if beside is not None:
            yield beside
            continue
        source = None if level else _source(parts[:depth])
        if source is not None and is_local(source):
            yield source


def _source(parts: Sequence[str]) -> Path | None:
    """The file of a module, found without importing it: what else was imported must not matter."""
    loaded = getattr(sys.modules.get(".".join(parts)), "__file__", None)
    if loaded is not None:
        return Path(loaded).resolve()
    folders: Sequence[str] | None = None
    origin = None
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), folders)
        if spec is None:
            return None
        folders, origin = spec.submodule_search_locations or [], spec.origin
    return None if origin is None else Path(origin).resolve()


def _module_file(path: Path) -> Path | None:
    for candidate in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate.resolve()
    return None


def is_local(file: Path) -> bool:
    """Whether it is a module of the user's own, see `code_digest`."""
    return file.suffix == ".py" and not any(file.is_relative_to(f) for f in _library_folders())


@lru_cache(maxsize=1)
def _library_folders() -> tuple[Path, ...]:
    """Where code lies that no plugin brings: vipbench's own, Python's, and the folders of
    `sys.path` that distributions are installed in, which may be others than this environment's."""
    paths = sysconfig.get_paths()
    found = [Path(paths[k]) for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    found.append(Path(__file__).parents[1])
    for entry in map(Path, filter(None, sys.path)):
        if entry.name in ("site-packages", "dist-packages") or any(entry.glob("*.dist-info")):
            found.append(entry)
    # Also where they lie without being installed.
    libraries = (sys.modules.get(name) for name in ("torch", "numpy", "PIL"))
    found += [Path(module.__path__[0]).parent for module in libraries if module is not None]
    return tuple(dict.fromkeys(folder.resolve() for folder in found))


def _is_installed(file: Path) -> bool:
    """Whether it is Python's, this environment's or vipbench's own. Not by what lies in a folder of
    the path: a folder of plugins is one of these."""
    return any(file.is_relative_to(folder) for folder in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    found = [Path(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    every = [Path(__file__).parents[1], *found]
    return tuple(dict.fromkeys([*every, *(folder.resolve() for folder in every)]))
