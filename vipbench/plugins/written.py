"""A method class of a script or notebook as a plugin's file.

The file holds the class and all that it reaches where it was defined: functions and classes by
their source, constants by their value, names of installed packages as imports. Local modules are
copied into a folder beside it. A file, unlike a pickled class, can be read before it is trusted.
"""

from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from vipbench.errors import UsageError
from vipbench.plugins.closure import is_own
from vipbench.plugins.copied import copied_modules, imports_of_copies, local_file
from vipbench.plugins.expressed import PLAIN, CannotWriteError, Values, alias_of
from vipbench.plugins.live_source import (
    NoSourceError,
    Source,
    chains_in,
    names_in,
    own_functions,
    replaced,
    shifted,
    source_of,
    with_values,
)
from vipbench.plugins.origins import (
    NOWHERE,
    decorated,
    importable,
    is_own_definition,
    looked_up,
    namespace,
)

_RESERVED = frozenset(("register_methods", "vipbench", "_hookimpl"))


@dataclasses.dataclass(frozen=True)
class Written:
    """A plugin's file. name: the method's. files: path within a plugins' folder -> content; the
    plugin's own is the first. folder: that holds the others."""

    name: str
    files: Mapping[str, bytes]
    folder: str

    @property
    def file(self) -> str:
        """The plugin's own file."""
        return next(iter(self.files))


def write_class(method: type) -> Written:
    """`method` as a plugin's file. Raises UsageError naming what cannot be written."""
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not name:
        raise UsageError(
            f"the method class '{method.__name__}' has no name; give it a class attribute, such as "
            f"name = '{method.__name__.lower()}'"
        )
    if name != name.lower() or not all(c.isalnum() or c in "-_+." for c in name):
        raise UsageError(
            f"the method class '{method.__name__}' has the name '{name}'; expected a lowercase "
            "word of letters, digits and - _ + ."
        )
    stem = re.sub(r"\W", "_", name)
    folder = f"{stem}_files"
    writer = _Writer(folder)
    try:
        with writer.at(method.__name__):
            bound = writer.refer(method, method.__name__)
    except RecursionError:
        raise UsageError(
            f"the method class '{method.__name__}' cannot be sent to the workers: its references "
            "are nested without end"
        ) from None
    except CannotWriteError as error:
        raise UsageError(
            f"the method class '{method.__name__}' cannot be sent to the workers: {error}. It may "
            "use functions and classes (copied as source), constants (copied as values), installed "
            "packages and local modules (copied as files); create other objects in its methods, or "
            "pass them as hyperparameters"
        ) from None
    files = {f"{_stem(name)}.py": writer.text(method, name, bound).encode()}
    files |= {f"{folder}/{place}": code for place, code in copied_modules(writer.local).items()}
    return Written(name, files, folder)


def _stem(name: str) -> str:
    return f"method-{name}" if name.startswith(("_", "test_")) else name


class _Writer(Values):
    """Collects the parts of one file. local: the local modules that it imports."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.local: dict[str, Path] = {}
        self.future = False
        self._body: list[str] = []
        self._bound: dict[str, Any] = {}
        self._names: dict[int, str] = {}  # of each thing in the file, one that it is bound to

    def text(self, method: type, name: str, bound: str) -> str:
        """The file."""
        first = (
            inspect.cleandoc(vars(method).get("__doc__") or "")
            .split("\n")[0]
            .replace("\\", "")
            .replace('"', "'")
        )
        head = [
            f'"""The method \'{name}\'{f": {first}" if first else "."}\n\nWritten by vipbench from '
            'the class that a script or notebook gave, with all that it reaches.\n"""\n'
        ]
        if self.future:
            head.append("from __future__ import annotations\n")
        head.append(
            "\n".join([*sorted(self._imports), "from vipbench import hookimpl as _hookimpl"])
        )
        hook = f"@_hookimpl\ndef register_methods(register):\n    register({bound})\n"
        return "\n".join([*head, "", *(f"{part.rstrip()}\n" for part in self._body), "", hook])

    # Names at the top of the file.

    def bind(self, name: str, value: Any) -> None:
        """Let `name` mean `value` in the file. Raises CannotWriteError."""
        if name in self._bound:
            if self._bound[name] is value or _same_constant(self._bound[name], value):
                return
            self._refuse(f"differs from the '{name}' that another part of the class uses")
        if name in _RESERVED and not isinstance(value, ModuleType):
            self._refuse("has a name that is reserved in the written file; rename it")
        self._bound[name] = value
        if isinstance(value, ModuleType):
            self._bind_module(name, value)
        elif isinstance(value, (*PLAIN, float, complex)):
            self._body.append(f"{name} = {self.express(value)}")
        elif id(value) in self._names:
            self._body.append(f"{name} = {self._names[id(value)]}")
        elif (definition := self._definition(name, value)) is not None:
            self._names.setdefault(id(value), name)
            self._define(name, value, *definition)
        elif (place := importable(value, name)) is not None:
            self._names.setdefault(id(value), name)
            self._import_from(name, *place)
        elif _is_namedtuple(value):
            made = f"{self._module(collections)}.namedtuple({value.__name__!r}, {value._fields!r}"
            defaults = tuple(value._field_defaults.values())
            self._names.setdefault(id(value), name)
            self._body.append(f"{name} = {made}, defaults={self.express(defaults, name)})")
        elif isinstance(value, type | FunctionType):
            kind = "class" if isinstance(value, type) else "function"
            self._refuse(f"is a {kind} made without a class statement or def; define it with one")
        else:
            self._bind_value(name, value)

    def _bind_value(self, name: str, value: Any) -> None:
        at = len(self._body)
        text = self.express(value, name)
        if type(value) in (dict, list) and len(self._body) > at:
            # What it holds may be what fills it, such as functions by a decorator.
            self._body.insert(at, f"{name} = {type(value).__name__}()")
            fill = f"{name}[:] = {text}" if type(value) is list else f"{name}.update({text})"
            self._body.append(f"{name}.clear()\n{fill}")
        else:
            self._body.append(f"{name} = {text}")

    def _bind_module(self, name: str, module: ModuleType) -> None:
        if module.__name__ == "__main__":
            self._refuse("is the script's own module; use its names directly")
        if is_own(module):
            place = self._local(module)
            package, _, last = place.rpartition(".")
            self._imports[f"from {package} import {last} as {name}"] = None
        else:
            plain = name == module.__name__
            self._imports[f"import {module.__name__}" + ("" if plain else f" as {name}")] = None

    def _local(self, module: ModuleType) -> str:
        """The name that the copy of a local module has. Raises CannotWriteError."""
        file = local_file(module.__name__)
        if file is None:
            self._refuse(f"belongs to the module '{module.__name__}', which has no *.py file")
        self.local[module.__name__] = file
        return f"{self.folder}.{module.__name__}"

    def _import_from(self, name: str, module: ModuleType, path: str) -> None:
        place = self._local(module) if is_own(module) else module.__name__
        if "." in path:
            self._imports[f"import {place} as {alias_of(place)}"] = None
            self._body.append(f"{name} = {alias_of(place)}.{path}")
        else:
            self._imports[f"from {place} import {path}" + (f" as {name}" * (path != name))] = None

    def _definition(self, name: str, value: Any) -> tuple[Any, Source] | None:
        """The class or function, as it was before it was decorated, and the source that binds
        `name` to `value` where it was defined; None where it is no class or function of the user's
        own, or is imported from a local module."""
        kind = value if isinstance(value, type) else decorated(value, name)
        if kind is None or not is_own_definition(kind):
            return None
        if kind is value and (place := importable(value, name)) and is_own(place[0]):
            return None
        try:
            return kind, source_of(kind)
        except NoSourceError as error:
            if _is_namedtuple(kind):
                return None
            self._refuse(
                f"is a {'class' if isinstance(kind, type) else 'function'} whose source cannot be "
                f"read ({error}); define it in a script, a notebook cell or a module"
            )

    def _is_defined(self, name: str, value: Any) -> bool:
        return self._definition(name, value) is not None

    def _define(self, name: str, value: Any, bare: Any, source: Source) -> None:
        self.future |= source.future
        space = namespace(bare)
        if source.indented and isinstance(bare, type):
            source = with_values(source, lambda n: self._plain_value(vars(bare).get(n, NOWHERE)))
        source = self._with_copies(source, space)
        free = self._free(bare, source)
        names = names_in(source, free)
        enclosed = any(set(f.__code__.co_freevars) - {"__class__"} for f in own_functions(bare))
        spelled = {n: looked_up(space, n) for n in (*names.at_once, *names.later)}
        for base in getattr(value, "__bases__", ()):
            # The name may mean another class by now, as in `class A(A)`.
            if isinstance(spelled.get(base.__name__), type):
                spelled[base.__name__] = base
        for each in names.at_once:
            if spelled[each] is NOWHERE and each != source.name and not hasattr(builtins, each):
                self._refuse(f"uses '{each}' in its definition, which no longer has a value")
        own = not enclosed and source.name == name
        if own and name in names.at_once and spelled[name] is not value:
            del self._bound[name]
            self._need(name, spelled[name])
        skipped = {*free, source.name}
        for each in names.at_once:
            if each not in skipped:
                self._need(each, spelled[each], source)
        arguments = ", ".join(f"{n}={self._argument(name, n, v)}" for n, v in free.items())
        self._bound[name] = value
        if own:
            self._body.append(source.text)
        else:
            made = source.name or source.text
            parameters = ", ".join(free)
            inner = shifted(source.text, "", "    ") if source.name else ""
            self._body.append(
                f"def _make_{name}({parameters}):\n{inner}    return {made}\n\n"
                f"{name} = _make_{name}({arguments})"
            )
        for each in names.later:
            if each not in free and not (each == source.name and spelled[each] is value and own):
                self._need(each, spelled[each], source)
        for each in names.noted:
            self._note(each, looked_up(space, each), source)

    def _plain_value(self, value: Any) -> str | None:
        return self.express(value) if type(value) in (*PLAIN, float) else None

    def _with_copies(self, source: Source, space: Mapping[str, Any]) -> Source:
        """With imports within the definition that find the copies of local modules."""
        tree = ast.parse(source.text)
        tops = set()
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level:
                # Of a script that is run as a module of a package.
                package = space.get("__package__") or "__main__"
                with contextlib.suppress(ImportError):
                    relative = "." * node.level + (node.module or "")
                    node.module, node.level = resolve_name(relative, package), 0
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if (file := local_file(name)) is not None:
                    self.local[name] = file
                    tops.add(name.partition(".")[0])
        edits = imports_of_copies(tree, f"{self.folder}.", tops) if tops else []
        return dataclasses.replace(source, text=replaced(source.text, edits)) if edits else source

    def _need(self, name: str, value: Any, source: Source | None = None) -> None:
        if value is NOWHERE:
            return
        with self.at(name):
            if name == "__file__":
                self._refuse("is another path in the workers; write the path in full")
            if name.startswith("__") and name.endswith("__"):
                return
            self.bind(name, value)
            if source is not None and isinstance(value, ModuleType):
                self._submodules(name, value, source)

    def _submodules(self, name: str, module: ModuleType, source: Source) -> None:
        """Import what is read off a package and is a module that only an import makes."""
        for chain in chains_in(source, name):
            inner: Any = module
            for part in chain:
                inner = getattr(inner, part, None)
                if not isinstance(inner, ModuleType):
                    break
                if is_own(inner):
                    self._imports[f"import {self._local(inner)}"] = None
                elif inner.__name__ in sys.modules and inner.__name__.startswith(module.__name__):
                    self._imports[f"import {inner.__name__} as {alias_of(inner.__name__)}"] = None

    def _note(self, name: str, value: Any, source: Source) -> None:
        """Names of annotations come along where they can: nothing but a reader of types looks."""
        before = dict(self._bound), dict(self._imports), len(self._body)
        try:
            self._need(name, value, source)
        except CannotWriteError:
            self._bound, self._imports = before[0], before[1]
            del self._body[before[2] :]

    def _free(self, value: Any, source: Source) -> dict[str, Any]:
        """What a definition reads from a function around it."""
        found: dict[str, Any] = {}
        for function in own_functions(value):
            cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            for name, cell in cells:
                try:
                    held = cell.cell_contents
                except ValueError:
                    self._refuse(f"uses '{name}' of an enclosing function, which has no value yet")
                if name != "__class__" and not (held is value and name == source.name):
                    found[name] = held
        if isinstance(value, type):
            inner = {n.__name__ for n in vars(value).values() if isinstance(n, type)}
            found = {n: v for n, v in found.items() if n not in inner}
        return dict(sorted(found.items()))

    def _argument(self, owner: str, name: str, value: Any) -> str:
        with self.at(name):
            return self.express(value, f"_{owner}_{name}")

    # Values.

    def refer(self, value: Any, wished: str) -> str:
        """The name that a class or function has in the file."""
        if id(value) in self._names:
            return self._names[id(value)]
        space = namespace(value)
        known = next((n for n, v in list(space.items()) if v is value), None)
        if known is None:
            known = getattr(value, "__name__", "")
            if not known.isidentifier() or known in space:
                known = wished if wished not in space else f"_{wished}"
        name = known
        while name in self._bound:
            name = f"_{name}"
        self.bind(name, value)
        return name


def _is_namedtuple(value: Any) -> bool:
    return isinstance(value, type) and value.__bases__ == (tuple,) and hasattr(value, "_fields")


def _same_constant(one: Any, other: Any) -> bool:
    return type(one) is type(other) and isinstance(one, (*PLAIN, float)) and one == other
