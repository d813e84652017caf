"""Values as expressions of a file: constants, containers, types, calls that make an object."""

from __future__ import annotations

import argparse
import builtins
import collections
import dataclasses
import enum
import functools
import logging
import math
import pathlib
import re
import sys
import types
import typing
from abc import ABC, abstractmethod
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from vipbench.plugins.closure import is_own
from vipbench.plugins.origins import importable

# More values than this are data, which a key and a reader of the file should not have to carry.
MOST_VALUES = 4096
PLAIN = (type(None), bool, int, str, bytes, type(...))
_TYPE_FORMS = (types.GenericAlias, types.UnionType)


class CannotWriteError(Exception):
    """Something that is not source, constant or installed; the message says what it is."""


class Values(ABC):
    """Writes expressions. What they import is collected."""

    def __init__(self) -> None:
        self._imports: dict[str, None] = {}
        self._way: list[str] = []

    def at(self, place: str) -> _Reached:
        """Within this, messages say that something was reached from `place`."""
        return _Reached(self._way, place)

    def _refuse(self, what: str) -> typing.NoReturn:
        way = " -> ".join(self._way)
        raise CannotWriteError(f"{way} {what}")

    @abstractmethod
    def refer(self, value: Any, wished: str) -> str:
        """The name that a class or function has in the file."""

    @abstractmethod
    def _local(self, module: ModuleType) -> str:
        """The name that the copy of a local module has."""

    @abstractmethod
    def _is_defined(self, name: str, value: Any) -> bool:
        """Whether it is written by its source."""

    def express(self, value: Any, wished: str = "_value") -> str:
        """An expression that gives `value`. Raises CannotWriteError."""
        if isinstance(value, enum.Enum):
            return f"{self.express(type(value))}.{value.name}"
        if type(value) in PLAIN:
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
            place = None if self._is_defined(wished, value) else importable(value, "")
            return self._imported(*place) if place else self.refer(value, wished)
        found = self._constructed(value, wished)
        if found is not None:
            return found
        place = importable(value, wished)
        if place is None:
            self._refuse(f"is {_kind_of(value)}, which is neither source nor a constant")
        return self._imported(*place)

    def _imported(self, module: ModuleType, path: str) -> str:
        return path if module is builtins else f"{self._module(module)}.{path}"

    def _module(self, module: ModuleType) -> str:
        place = self._local(module) if is_own(module) else module.__name__
        self._imports[f"import {place} as {alias_of(place)}"] = None
        return alias_of(place)

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
        if kind in (types.SimpleNamespace, argparse.Namespace):
            return call(kind, **vars(value))
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
        if kind.__module__ in ("operator", "datetime", "decimal", "fractions"):
            function, *rest = value.__reduce__()
            return call(function, *rest[0]) if len(rest) == 1 else None
        return self._of_library(value, kind)

    def _of_library(self, value: Any, kind: type) -> str | None:
        """Constants of numpy, and types and devices of torch."""
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray | numpy.dtype):
            if isinstance(value, numpy.dtype):
                return f"{self._module(numpy)}.dtype({value.str!r})"
            if value.dtype.kind not in "biufcUS" or value.size > MOST_VALUES:
                self._refuse(
                    f"is {_kind_of(value)}; a constant has up to {MOST_VALUES:,} numbers or texts"
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


class _Reached:
    def __init__(self, way: list[str], place: str) -> None:
        self._all, self._place = way, place

    def __enter__(self) -> None:
        self._all.append(f"'{self._place}'")

    def __exit__(self, kind: object, *_: object) -> None:
        self._all.pop()


def _kind_of(value: Any) -> str:
    kind = type(value)
    where = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"an object of {where}{kind.__qualname__}"


def alias_of(place: str) -> str:
    """The name that a module has in the file where an expression needs it."""
    return f"_{place.replace('.', '_')}"
