"""Local modules copied beside a plugin, with imports of each other that find the copies."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from vipbench.errors import UsageError
from vipbench.plugins.files import is_local, local_modules
from vipbench.plugins.live_source import replaced


def local_file(name: str) -> Path | None:
    """The file of a local module, imported or not; None for any other module."""
    module = sys.modules.get(name)
    try:
        origin = getattr(module, "__file__", None) if module else find_origin(name)
    except (ImportError, ValueError, AttributeError):
        return None
    file = Path(origin).resolve() if origin else None
    return file if file is not None and is_local(file) else None


def find_origin(name: str) -> str | None:
    """Where a module that is not imported would come from."""
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin


def copied_modules(modules: Mapping[str, Path]) -> dict[str, bytes]:
    """The files of these modules and of all local modules that they import: path within the folder
    of copies -> content. {} for none. Raises UsageError."""
    if not modules:
        return {}
    names: dict[Path, tuple[str, ...]] = {}
    for name, file in modules.items():
        for one in (file, *local_modules(file), *_packages(file, name)):
            names.setdefault(one, _parts(one, name if one == file else None))
    tops = {parts[0].removesuffix(".py") for parts in names.values()}
    found = {"__init__.py": b""}
    for file, parts in names.items():
        place = "/".join(parts)
        if place in found:
            raise UsageError(f"two local modules have the name '{place}'; rename {file}")
        found[place] = _rewritten(file, len(parts), tops)
    return dict(sorted(found.items()))


def _packages(file: Path, name: str) -> list[Path]:
    """The `__init__.py` of the packages around a module."""
    folders = list(file.parents)[: name.count(".") + (file.name == "__init__.py")]
    return [f / "__init__.py" for f in folders if (f / "__init__.py").is_file()]


def _parts(file: Path, name: str | None) -> tuple[str, ...]:
    """Where a module lies below the folder that its imports start from."""
    if name is None:
        live = (n for n, m in list(sys.modules.items()) if _is_file(m, file) and n != "__main__")
        name = next(live, None)
    package = file.name == "__init__.py"
    if name is not None:
        depth = name.count(".") + package
    else:
        depth, folder = 0, file.parent
        while (folder / "__init__.py").is_file():
            depth, folder = depth + 1, folder.parent
    return file.parts[len(file.parts) - depth - 1 :]


def _is_file(module: object, file: Path) -> bool:
    found = getattr(module, "__file__", None)
    return isinstance(found, str) and found.endswith(file.name) and Path(found).resolve() == file


def _rewritten(file: Path, level: int, tops: set[str]) -> bytes:
    """The content of a module; `import other` of a copied one becomes relative. level: how many
    folders up the copies begin."""
    code = file.read_bytes()
    try:
        tree = ast.parse(code)
        edits = imports_of_copies(tree, "." * level, tops)
        return replaced(code.decode(), edits).encode() if edits else code
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"the local module {file} cannot be read as UTF-8: {error}") from error


def imports_of_copies(tree: ast.AST, prefix: str, tops: set[str]) -> list[tuple[ast.stmt, str]]:
    """The imports of modules that are copied, and what stands in their place. prefix: dots, or the
    name of the folder of copies and a dot. tops: the first parts of the modules' names."""
    return [
        (node, text)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and (text := _relative(node, prefix, tops)) is not None
    ]


def _relative(node: ast.Import | ast.ImportFrom, dots: str, tops: set[str]) -> str | None:
    """The statement in the form that finds the copies, None where it may stay."""
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level or module.partition(".")[0] not in tops:
            return None
        names = ", ".join(_alias(alias.name, alias.asname) for alias in node.names)
        return f"from {dots}{module} import {names}"
    if not any(alias.name.partition(".")[0] in tops for alias in node.names):
        return None
    parts = []
    for alias in node.names:
        package, _, last = alias.name.rpartition(".")
        top = alias.name.partition(".")[0]
        if top not in tops:
            parts.append(f"import {_alias(alias.name, alias.asname)}")
        elif alias.asname or not package:
            parts.append(f"from {_joined(dots, package)} import {_alias(last, alias.asname)}")
        else:
            parts += [f"from {_joined(dots, package)} import {last} as _{last}"]
            parts += [f"from {_joined(dots)} import {top}"]
    return "; ".join(parts)


def _alias(name: str, other: str | None) -> str:
    return name if other is None else f"{name} as {other}"


def _joined(prefix: str, package: str = "") -> str:
    return f"{prefix}{package}" if package or prefix.startswith(".") else prefix.rstrip(".")
