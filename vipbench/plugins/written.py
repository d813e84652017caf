"""A method class of a script or notebook as a plugin's file.

The file holds the class and all that it reaches where it was defined: functions and classes by
their source, constants by their value, names of installed packages as imports. Local modules are
copied into a folder beside it. A file, unlike a pickled class, can be read before it is trusted.
"""

from __future__ import annotations

import ast
import builtins
import collections
import dataclasses
import enum
import functools
import inspect
import logging
import math
import pathlib
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from vipbench.errors import UsageError
from vipbench.plugins.closure import is_own
from vipbench.plugins.copied import copied_modules, imports_of_copies, local_file
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

# More values than this are data, which a key and a reader of the file should not have to carry.
MOST_VALUES = 4096
_PLAIN = (type(None), bool, int, str, bytes, type(...))
_TYPE_FORMS = (types.GenericAlias, types.UnionType)
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


class CannotWriteError(Exception):
    """Something that is not source, constant or installed; the message says what it is."""


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
            f"the method class '{method.__name__}' cannot be sent to the workers: what it reaches "
            "has no end"
        ) from None
    except CannotWriteError as error:
        raise UsageError(
            f"the method class '{method.__name__}' cannot be sent to the workers: {error}. It may "
            "reach functions and classes (by source), constants (by value), installed packages and "
            "local modules (by file); make anything else in its methods, or give it as a "
            "hyperparameter"
        ) from None
    files = {f"{_stem(name)}.py": writer.text(method, name, bound).encode()}
    files |= {f"{folder}/{place}": code for place, code in copied_modules(writer.local).items()}
    return Written(name, files, folder)


def _stem(name: str) -> str:
    return f"method-{name}" if name.startswith(("_", "test_")) else name


class _Writer:
    """Collects the parts of one file. local: the local modules that it imports."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.local: dict[str, Path] = {}
        self.future = False
        self._imports: dict[str, None] = {}
        self._body: list[str] = []
        self._bound: dict[str, Any] = {}
        self._names: dict[int, str] = {}  # of each thing in the file, one that it is bound to
        self._way: list[str] = []

    def text(self, method: type, name: str, bound: str) -> str:
        """The file."""
        first = (inspect.getdoc(method) or "").split("\n")[0].replace("\\", "").replace('"', "'")
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

    def at(self, place: str) -> _Way:
        """Within this, messages say that something was reached from `place`."""
        return _Way(self._way, place)

    def _refuse(self, what: str) -> typing.NoReturn:
        way = " -> ".join(self._way)
        raise CannotWriteError(f"{way} {what}")

    # Names at the top of the file.

    def bind(self, name: str, value: Any) -> None:
        """Let `name` mean `value` in the file. Raises CannotWriteError."""
        if name in self._bound:
            if self._bound[name] is value or _same_constant(self._bound[name], value):
                return
            self._refuse(f"is another thing than the '{name}' that something else of it reaches")
        if name in _RESERVED and not isinstance(value, ModuleType):
            self._refuse("has a name that the written file needs; rename it")
        self._bound[name] = value
        if isinstance(value, ModuleType):
            self._bind_module(name, value)
        elif isinstance(value, (*_PLAIN, float, complex)):
            self._body.append(f"{name} = {self.express(value)}")
        elif id(value) in self._names:
            self._body.append(f"{name} = {self._names[id(value)]}")
        elif (definition := self._definition(name, value)) is not None:
            self._names.setdefault(id(value), name)
            self._define(name, value, *definition)
        elif (place := importable(value, name)) is not None:
            self._names.setdefault(id(value), name)
            self._import_from(name, *place)
        elif isinstance(value, type | FunctionType):
            kind = "class" if isinstance(value, type) else "function"
            self._refuse(f"is a {kind} that no class statement or def gave; write it as one")
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
            self._refuse("is the script itself; read its names, not the module")
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
            self._refuse(f"is of the module '{module.__name__}', of which there is no *.py file")
        self.local[module.__name__] = file
        return f"{self.folder}.{module.__name__}"

    def _import_from(self, name: str, module: ModuleType, path: str) -> None:
        place = self._local(module) if is_own(module) else module.__name__
        if "." in path:
            self._imports[f"import {place} as {_alias(place)}"] = None
            self._body.append(f"{name} = {_alias(place)}.{path}")
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
            self._refuse(
                f"is a {'class' if isinstance(kind, type) else 'function'} whose source cannot be "
                f"had ({error}); put it into a script, a notebook's cell or a module"
            )

    def _define(self, name: str, value: Any, bare: Any, source: Source) -> None:
        self.future |= source.future
        space = namespace(bare)
        if source.indented and isinstance(bare, type):
            source = with_values(source, lambda n: self._plain_value(vars(bare).get(n, NOWHERE)))
        source = self._with_copies(source)
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
                self._refuse(f"reads '{each}' while it is defined, which has no value any more")
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
        return self.express(value) if type(value) in (*_PLAIN, float) else None

    def _with_copies(self, source: Source) -> Source:
        """With imports within the definition that find the copies of local modules."""
        tree = ast.parse(source.text)
        tops = set()
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
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
                self._refuse("is another file in the workers; write the path out")
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
                    self._imports[f"import {inner.__name__} as {_alias(inner.__name__)}"] = None

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
                    self._refuse(f"reads '{name}' of a function around it, which has no value yet")
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

    def express(self, value: Any, wished: str = "_value") -> str:
        """An expression that gives `value`. Raises CannotWriteError."""
        if isinstance(value, enum.Enum):
            return f"{self.express(type(value))}.{value.name}"
        if type(value) in _PLAIN:
            return repr(value)
        if type(value) is float:
            return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
        if type(value) is complex:
            return f"complex({self.express(value.real)}, {self.express(value.imag)})"
        if type(value) in (list, tuple, set, frozenset, dict):
            return self._container(value, wished)
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, _TYPE_FORMS) or typing.get_origin(value) is not None:
            return self._type_form(value)
        if isinstance(value, type | FunctionType) or callable(getattr(value, "__wrapped__", None)):
            place = None if self._definition(wished, value) else importable(value, "")
            return self._imported(*place) if place else self.refer(value, wished)
        found = self._constructed(value, wished)
        if found is not None:
            return found
        place = importable(value, wished)
        if place is None:
            self._refuse(f"is {_what(value)}, which is neither source nor a constant")
        return self._imported(*place)

    def _imported(self, module: ModuleType, path: str) -> str:
        return path if module is builtins else f"{self._module(module)}.{path}"

    def _module(self, module: ModuleType) -> str:
        place = self._local(module) if is_own(module) else module.__name__
        self._imports[f"import {place} as {_alias(place)}"] = None
        return _alias(place)

    def _container(self, value: Any, wished: str) -> str:
        if len(value) > MOST_VALUES:
            self._refuse(f"holds {len(value):,} values; a constant may have {MOST_VALUES:,}")
        if isinstance(value, dict):
            pairs = []
            for key, item in value.items():
                with self.at(f"[{key!r}]"):
                    pairs.append(f"{self.express(key, wished)}: {self.express(item, wished)}")
            return f"{{{', '.join(pairs)}}}"
        parts = []
        for i, item in enumerate(value):
            with self.at(f"[{i}]"):
                parts.append(self.express(item, wished))
        if isinstance(value, set | frozenset):
            inside = f"{{{', '.join(sorted(parts))}}}" if parts else "()"
            name = type(value).__name__
            return inside if parts and name == "set" else f"{name}({inside})"
        comma = "," if len(parts) == 1 else ""
        return (
            f"[{', '.join(parts)}]" if isinstance(value, list) else f"({', '.join(parts)}{comma})"
        )

    def _type_form(self, value: Any) -> str:
        origin, args = typing.get_origin(value), typing.get_args(value)
        forms = {
            typing.Annotated: "Annotated",
            typing.Literal: "Literal",
            typing.Union: "Union",
            types.UnionType: "Union",
        }
        first = f"{self._module(typing)}.{forms[origin]}" if origin in forms else None
        if origin is collections.abc.Callable and args:
            inside = [f"[{', '.join(map(self.express, args[:-1]))}]", self.express(args[-1])]
        else:
            inside = [self.express(arg) for arg in args]
        return f"{first or self.express(origin)}[{', '.join(inside)}]"

    def _constructed(self, value: Any, wished: str) -> str | None:
        """A call that makes `value`, None where it is of no kind that is known."""
        kind = type(value)

        def call(function: Any, *args: Any, **named: Any) -> str:
            texts = [self.express(arg, wished) for arg in args]
            for name, arg in named.items():
                with self.at(name):
                    texts.append(f"{name}={self.express(arg, wished)}")
            return f"{self.express(function, wished)}({', '.join(texts)})"

        if isinstance(value, functools.partial):
            return call(functools.partial, value.func, *value.args, **value.keywords)
        if isinstance(value, types.MethodType) and isinstance(value.__self__, type):
            return f"{self.express(value.__self__)}.{value.__name__}"
        if isinstance(value, range | slice):
            return call(kind, value.start, value.stop, value.step)
        if isinstance(value, collections.OrderedDict | collections.Counter):
            return call(kind, dict(value))
        if isinstance(value, collections.defaultdict):
            return call(kind, value.default_factory, dict(value))
        if isinstance(value, collections.deque):
            return call(kind, list(value), value.maxlen)
        if isinstance(value, types.MappingProxyType):
            return call(kind, dict(value))
        if isinstance(value, types.SimpleNamespace):
            return call(types.SimpleNamespace, **vars(value))
        if isinstance(value, pathlib.PurePath):
            return call(Path if isinstance(value, Path) else kind, str(value))
        if isinstance(value, re.Pattern):
            return call(re.compile, value.pattern, value.flags)
        if isinstance(value, logging.Logger):
            return call(logging.getLogger, value.name)
        if isinstance(value, typing.TypeVar):
            return call(typing.TypeVar, value.__name__)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return call(kind, *value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [f for f in dataclasses.fields(value) if f.init]
            return call(kind, **{f.name: getattr(value, f.name) for f in fields})
        return self._of_library(value, kind)

    def _of_library(self, value: Any, kind: type) -> str | None:
        """Constants of numpy, and types and devices of torch."""
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray | numpy.dtype):
            if isinstance(value, numpy.dtype):
                return f"{self._module(numpy)}.dtype({value.str!r})"
            if value.dtype.kind not in "biufcUS" or value.size > MOST_VALUES:
                self._refuse(
                    f"is {_what(value)}; a constant has up to {MOST_VALUES:,} numbers or texts"
                )
            held = self.express(value.tolist())
            made = f"{self._module(numpy)}.array({held}, dtype={value.dtype.str!r})"
            if isinstance(value, numpy.generic):
                return f"{made}[()]"
            return f"{made}.reshape({value.shape!r})" if value.size == 0 else made
        if torch is not None and isinstance(value, torch.dtype | torch.layout):
            self._imports["import torch as _torch"] = None
            return f"_{value!r}"
        if torch is not None and isinstance(value, torch.device | torch.Size):
            argument = str(value) if isinstance(value, torch.device) else tuple(value)
            return f"{self._module(torch)}.{kind.__name__}({argument!r})"
        if torch is not None and isinstance(value, torch.Tensor):
            self._refuse(
                "is a tensor; keep its values as a list and make the tensor in a method, or "
                "compute it there"
            )
        return None


class _Way:
    def __init__(self, way: list[str], place: str) -> None:
        self._all, self._place = way, place

    def __enter__(self) -> None:
        self._all.append(f"'{self._place}'")

    def __exit__(self, kind: object, *_: object) -> None:
        self._all.pop()


def _alias(place: str) -> str:
    return f"_{place.replace('.', '_')}"


def _same_constant(one: Any, other: Any) -> bool:
    return type(one) is type(other) and isinstance(one, (*_PLAIN, float)) and one == other


def _what(value: Any) -> str:
    kind = type(value)
    where = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"an object of {where}{kind.__qualname__}"
