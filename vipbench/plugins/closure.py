"""What a method class consists of, line by line, to compare it between two processes.

A class that was written as a plugin's file must be, in a new process, what it is where it was
defined. Compared is what Python runs (bytecode, constants, defaults, attributes), down to
installed packages, which count by name.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from vipbench.plugins.files import is_local

# What Python, dataclasses and ABCs add to a class by themselves.
_MADE = frozenset(
    "__module__ __qualname__ __dict__ __weakref__ __doc__ __annotations__ __firstlineno__ "
    "__static_attributes__ __abstractmethods__ _abc_impl __dataclass_params__ __match_args__ "
    "__orig_bases__ __parameters__ __type_params__ __annotate__ __annotate_func__ "
    "__annotations_cache__ __hash__ __slotnames__ __classcell__".split()
)
# Of a code's flags: more arguments, generators and coroutines.
_KIND = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200
_OF_CALLS = ("PUSH_NULL", "PRECALL", "CACHE", "EXTENDED_ARG", "NOP")
# In the names of the methods that dataclasses write.
GENERATED = "__create_fn__"
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)


def is_own(module: ModuleType | None) -> bool:
    """Whether a module is the user's: a script, a notebook, or a file beside them; not Python's or
    an installed package's."""
    if module is None or module.__name__ == "__main__":
        return True
    file = getattr(module, "__file__", None)
    return file is not None and is_local(Path(file).resolve())


def module_of(thing: Any) -> ModuleType | None:
    """The module that a class or function was defined in, None where it cannot be imported."""
    name = getattr(thing, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None


def closure(root: type) -> list[tuple[str, str]]:
    """Place -> what is there, in an order that does not depend on the process."""
    found: list[tuple[str, str]] = []
    seen: dict[int, int] = {}
    held: list[Any] = []  # so that no id is used twice

    def visit(place: str, value: Any) -> None:
        if isinstance(value, _CONSTANTS):
            found.append((place, f"{type(value).__name__} {value!r}"))
            return
        if id(value) in seen:
            found.append((place, f"the same as number {seen[id(value)]}"))
            return
        seen[id(value)] = len(seen)
        held.append(value)
        found.append((place, _description(value)))
        for name, part in _parts(value):
            visit(f"{place}{name}", part)

    visit(root.__name__, root)
    return found


def _description(value: Any) -> str:
    if isinstance(value, FunctionType):
        return f"function {_digest(value.__code__)}"
    if isinstance(value, ModuleType):
        return "local module" if is_own(value) else f"module {value.__name__}"
    if isinstance(value, type):
        return (
            f"class {value.__name__}"
            if is_own(module_of(value))
            else f"class {_qualified_name(value)}"
        )
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return f"{value.dtype} {getattr(value, 'shape', ())} {_sha(value.tobytes())}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {sorted(map(repr, value))}"
    if isinstance(value, BuiltinFunctionType):
        return f"function {value.__name__}"
    kind: Any = type(value)
    text = "" if kind.__repr__ is object.__repr__ else repr(value)
    plain = not any(mark in text for mark in (" at 0x", "__main__", "<locals>", "vipbench_plugin_"))
    return f"{type(value).__name__} {text if plain and not _is_container(value) else ''}"


def _is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping | functools.partial) or hasattr(
        value, "__dataclass_fields__"
    )


def _qualified_name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, type):
        if is_own(module_of(value)):
            yield from _parts_of_class(value)
    elif isinstance(value, FunctionType):
        module = sys.modules.get(value.__globals__.get("__name__", ""))
        if is_own(module):
            yield from _parts_of_function(value)
        elif getattr(module, value.__name__, None) is not value:  # what a decorator made
            yield from _held_by(value)
    elif isinstance(value, staticmethod | classmethod):
        yield "", value.__func__
    elif isinstance(value, MethodType):
        yield ".self", value.__self__
        yield "", value.__func__
    elif isinstance(value, property):
        yield from ((f".{n}", getattr(value, n)) for n in ("fget", "fset", "fdel"))
    elif isinstance(value, functools.cached_property):
        yield "", value.func
    elif isinstance(value, functools.partial | functools.partialmethod):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield "[key]", key
            yield f"[{key!r}]" if isinstance(key, str | int) else "[]", item
    elif isinstance(value, list | tuple):
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    elif hasattr(value, "__wrapped__"):
        yield "", value.__wrapped__
    elif isinstance(value, enum.Enum):
        yield ".type", type(value)
    elif hasattr(type(value), "__dataclass_fields__") or is_own(module_of(type(value))):
        yield ".type", type(value)
        yield from (
            (f".{name}", part) for name, part in sorted(getattr(value, "__dict__", {}).items())
        )


def _parts_of_class(value: type) -> Iterator[tuple[str, Any]]:
    yield from ((f" < {base.__name__}", base) for base in value.__bases__)
    yield " metaclass", type(value)
    for name in sorted(getattr(value, "__annotations__", {})):
        yield ".annotations", name
    for name, part in sorted(vars(value).items()):
        if name == "__dataclass_fields__":
            for field in part.values():
                yield f".{field.name}.default_factory", field.default_factory
            continue
        code = getattr(part, "__code__", None)
        generated = code is not None and GENERATED in code.co_qualname
        if name not in _MADE and not generated and not inspect.ismemberdescriptor(part):
            yield f".{name}", part


def _held_by(value: FunctionType) -> Iterator[tuple[str, Any]]:
    yield "()", value.__defaults__
    yield "()", value.__kwdefaults__
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            yield f": {name}", cell.cell_contents
        except ValueError:
            yield f": {name}", "(empty)"
    yield from ((f".{name}", part) for name, part in sorted(vars(value).items()))


def _parts_of_function(value: FunctionType) -> Iterator[tuple[str, Any]]:
    yield from _held_by(value)
    read = dict.fromkeys(chain for code in codes(value.__code__) for chain in _chains(code))
    for chain in sorted(read):
        found, at = value.__globals__.get(chain[0], _NONE), 1
        while at < len(chain) and isinstance(found, ModuleType) and is_own(found):
            found, at = getattr(found, chain[at], _NONE), at + 1
        if found is not _NONE and not (chain[0].startswith("__") and chain[0].endswith("__")):
            yield f" > {'.'.join(chain[:at])}", found


_NONE = object()


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code and all that it contains."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def _chains(code: CodeType) -> Iterator[tuple[str, ...]]:
    """The global names that a code reads, each with the attributes that are read off it."""
    chain: list[str] = []
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain.append(step.argval)
            continue
        if chain:
            yield tuple(chain)
        chain = [step.argval] if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") else []
    if chain:
        yield tuple(chain)


def _digest(code: CodeType) -> str:
    return _sha(repr(_canonical(code)).encode())


def _canonical(value: Any) -> Any:
    if isinstance(value, CodeType):
        return (
            _steps(value),
            (value.co_varnames[: value.co_argcount + value.co_kwonlyargcount], value.co_freevars),
            (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount),
            value.co_flags & _KIND,
        )
    if isinstance(value, frozenset):
        return ("frozenset", sorted(repr(_canonical(item)) for item in value))
    if isinstance(value, tuple):
        return tuple(map(_canonical, value))
    return (type(value).__name__, repr(value))


def _steps(code: CodeType) -> list[Any]:
    """The instructions, without what Python compiles otherwise when a module is imported in the
    same cell or file, and when a function stands within another; none where one is an import,
    which may be written for a copy of the module."""
    if any(step.opname == "IMPORT_NAME" for step in dis.get_instructions(code)):
        return []
    steps = [step for step in dis.get_instructions(code) if step.opname not in _OF_CALLS]
    # A jump may go to a step that is left out.
    places = {step.offset: i for i, step in reversed([*enumerate(steps)])}
    offsets = sorted(places)
    found: list[Any] = []
    for step in steps:
        name = "LOAD_ATTR" if step.opname == "LOAD_METHOD" else step.opname
        argument = step.argval
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            argument = next((places[at] for at in offsets if at >= argument), len(steps))
        elif argument == code.co_qualname or "<locals>" in str(argument):
            argument = str(argument).rpartition("<locals>.")[2].rpartition(".")[2]
        found.append((name, _canonical(argument)))
    return found


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
