"""The source of classes and functions that live in a script, a notebook or another interpreter."""

from __future__ import annotations

import ast
import inspect
import io
import linecache
import symtable
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, TypeAlias

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_COMPREHENSIONS = ("listcomp", "setcomp", "dictcomp", "genexpr")


class NoSourceError(LookupError):
    """The source of a class or function cannot be had; the message says why."""


@dataclass(frozen=True)
class Source:
    """A definition, or a lambda expression, that stands at the left margin. name: that it binds, ""
    for a lambda. future: whether its annotations stay texts. decorated: whether it has decorators.
    indented: whether it stood within a function or a block."""

    text: str
    name: str
    future: bool
    decorated: bool = False
    indented: bool = False


def own_functions(thing: Any) -> Iterator[FunctionType]:
    """The functions that the body of a class defines, those of nested classes included; or the
    function itself."""
    if isinstance(thing, FunctionType):
        yield thing
        return
    begin = f"{thing.__qualname__}."
    for part in vars(thing).values():
        for inner in _functions_in(part):
            if inner.__code__.co_qualname.startswith(begin):
                yield inner
        if isinstance(part, type) and part.__qualname__.startswith(begin):
            yield from own_functions(part)


def _functions_in(part: Any, depth: int = 0) -> Iterator[FunctionType]:
    """The functions that a member of a class consists of."""
    if isinstance(part, FunctionType):
        yield part
    if depth > 4 or isinstance(part, type):
        return
    for name in ("__func__", "__wrapped__", "fget", "fset", "fdel", "func"):
        inner = inspect.getattr_static(part, name, None)
        inner = getattr(part, name, None) if inner is not None else None
        if inner is not None and inner is not part:
            yield from _functions_in(inner, depth + 1)


def source_of(thing: Any) -> Source:
    """The source of a class or a function. Raises NoSourceError."""
    if isinstance(thing, FunctionType):
        return _source_of_code(thing.__code__)
    return _source_of_class(thing)


def _source_of_code(code: CodeType) -> Source:
    text, tree = _tree(code.co_filename)
    future = bool(code.co_flags & 0x1000000)
    if code.co_name == "<lambda>":
        return Source(_lambda(code, text, tree), "", future)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name == code.co_name and _first(node) == code.co_firstlineno:
            return _cut(node, text, future)
    raise NoSourceError(f"{_place(code.co_filename)} no longer has '{code.co_name}' at its line")


def _source_of_class(thing: type) -> Source:
    name = thing.__name__
    for function in own_functions(thing):
        code = function.__code__
        text, tree = _tree(code.co_filename)
        around = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            and node.name == name
            and _first(node) <= code.co_firstlineno <= (node.end_lineno or 0)
        ]
        if around:
            node = min(around, key=lambda one: (one.end_lineno or 0) - one.lineno)
            return _cut(node, text, bool(code.co_flags & 0x1000000))
    own = [f for f in vars(thing).values() if isinstance(f, FunctionType)]
    own = [f for f in own if f.__globals__.get("__name__") == thing.__module__]
    if any("__create_fn__" not in f.__code__.co_qualname for f in own):
        raise NoSourceError("no class statement of this name has its methods")
    # A class without functions: by its name and what its body binds.
    for file in _files(thing):
        try:
            text, tree = _tree(file)
        except NoSourceError:
            continue
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name]
        for node in reversed(nodes):
            if _may_be(thing, node):
                future = any(
                    isinstance(n, ast.ImportFrom)
                    and n.module == "__future__"
                    and any(alias.name == "annotations" for alias in n.names)
                    for n in tree.body
                )
                return _cut(node, text, future)
    raise NoSourceError(f"no source matches the class '{name}'")


def _files(thing: type) -> Iterator[str]:
    """Where a class without functions may be defined: its module's file, then the cells of a
    notebook, the latest first."""
    file = getattr(sys.modules.get(thing.__module__), "__file__", None)
    if file:
        yield file
    elif "-c" in sys.orig_argv:
        yield "<string>"
    cells = [n for n in linecache.cache if "ipython-input" in n or "ipykernel" in n]
    yield from reversed(cells)


def _may_be(thing: type, node: ast.ClassDef) -> bool:
    """Whether the body of `node` binds names of the class, and no constant that it has not."""
    held = {**vars(thing), **dict.fromkeys(getattr(thing, "__annotations__", ()), _UNKNOWN)}
    held.update(vars(thing))
    for statement in node.body:
        targets = [t for t in getattr(statement, "targets", ()) if isinstance(t, ast.Name)]
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            targets = [statement.target]
        for target in targets:
            if target.id not in held:
                return False
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Constant):
                found = getattr(held[target.id], "value", held[target.id])  # of an enum
                if isinstance(found, type(value.value)) and found != value.value:
                    return False
    return True


_UNKNOWN = object()


def _place(file: str) -> str:
    return {"<stdin>": "standard input"}.get(file, file)


def _tree(file: str) -> tuple[str, ast.Module]:
    linecache.checkcache(file)
    text = "".join(linecache.getlines(file))
    if not text and file == "<string>" and "-c" in sys.orig_argv[:-1]:
        text = sys.orig_argv[sys.orig_argv.index("-c") + 1]
    if not text:
        raise NoSourceError(f"Python has no source for {_place(file)}")
    return text, _parsed(text, file)


@lru_cache(maxsize=64)
def _parsed(text: str, file: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise NoSourceError(f"{_place(file)} cannot be parsed: {error}") from error


def _first(node: Definition) -> int:
    return min([node.lineno, *(one.lineno for one in node.decorator_list)])


def _cut(node: Definition, text: str, future: bool) -> Source:
    lines = text.splitlines(keepends=True)[_first(node) - 1 : node.end_lineno]
    first = lines[0]
    margin = first[: len(first) - len(first.lstrip())]
    cut = shifted("".join(lines).rstrip() + "\n", margin, "")
    tree = ast.parse(cut)
    if len(tree.body) != 1 or ast.dump(tree.body[0]) != ast.dump(node):
        raise NoSourceError(f"'{node.name}' shares its lines with other statements")
    return Source(cut, node.name, future, bool(node.decorator_list), bool(margin))


def shifted(text: str, old: str, new: str) -> str:
    """Lines with another margin, but for those that lie within a string."""
    lines = text.splitlines(keepends=True)
    inside: set[int] = set()
    # In a block of its own, so that an indented text is one that Python can read.
    prefix = "if 1:\n" if old else ""
    begun: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(prefix + text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "STRING":
            inside.update(range(token.start[0] + 1, token.end[0] + 1))
        elif kind.endswith("STRING_START"):
            begun.append(token.start[0])
        elif kind.endswith("STRING_END"):
            inside.update(range(begun.pop() + 1, token.end[0] + 1))
    found = []
    for i, line in enumerate(lines, 2 if prefix else 1):
        if i not in inside and line.strip():
            line = new + (line.removeprefix(old) if line.startswith(old) else line.lstrip())
        found.append(line)
    return "".join(found)


def _lambda(code: CodeType, text: str, tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno:
            found = f"({ast.get_source_segment(text, node)})"
            made = compile(found, "lambda", "eval").co_consts
            inner = [c for c in made if isinstance(c, CodeType)]
            free = set(code.co_freevars)  # those read as globals when it is compiled alone
            if inner and (free or (inner[0].co_code, inner[0].co_consts) == _body(code)):
                return found
    raise NoSourceError(f"{_place(code.co_filename)} no longer has this lambda at its line")


def _body(code: CodeType) -> tuple[bytes, tuple[Any, ...]]:
    return code.co_code, code.co_consts


@dataclass(frozen=True)
class Names:
    """The names that a definition reads from around it. at_once: while it is defined. later: when
    it is called. noted: in annotations that nothing evaluates by itself."""

    at_once: tuple[str, ...]
    later: tuple[str, ...]
    noted: tuple[str, ...]


def names_in(source: Source, free: Iterable[str] = ()) -> Names:
    """See Names; in alphabetical order. free: names of a function around it, which are left out."""
    head = "from __future__ import annotations\n" if source.future else ""
    free = tuple(free)
    if free:
        around = f"def _around({', '.join(free)}):\n{shifted(source.text, '', '    ')}"
        top = symtable.symtable(head + around, "source", "exec").get_children()[0]
    else:
        top = symtable.symtable(head + source.text, "source", "exec")
    at_once: set[str] = set()
    later: set[str] = set()

    def visit(table: symtable.SymbolTable, runs: bool) -> None:
        for symbol in table.get_symbols():
            outer = symbol.is_global() or (table is top and not free)
            if symbol.is_referenced() and outer:
                (at_once if runs else later).add(symbol.get_name())
        for child in table.get_children():
            function = str(child.get_type()).endswith("function")
            visit(child, runs and (not function or child.get_name() in _COMPREHENSIONS))

    visit(top, True)
    at_once |= _read_before_bound(ast.parse(source.text)) - {*free}
    noted = set(_annotations(ast.parse(source.text)))
    noted -= at_once | later | {*free}
    return Names(tuple(sorted(at_once)), tuple(sorted(later - at_once)), tuple(sorted(noted)))


def _read_before_bound(tree: ast.AST) -> set[str]:
    """The names that a class's body both reads and binds, and reads first, as in `lr = lr` and
    `class HParams(HParams)`."""
    found: set[str] = set()
    for owner in ast.walk(tree):
        bound: set[str] = set()
        loaded: set[str] = set()
        for statement in owner.body if isinstance(owner, ast.ClassDef) else ():
            read: list[ast.AST] = [statement]
            stored: set[str] = set()
            if isinstance(statement, Definition):
                stored = {statement.name}
                read = [*statement.decorator_list]
                if isinstance(statement, ast.ClassDef):
                    read += [*statement.bases, *statement.keywords]
                else:
                    read.append(statement.args)
            nodes = [node for one in read for node in ast.walk(one)]
            inner = [node.target for node in nodes if isinstance(node, ast.comprehension)]
            own = {n.id for one in inner for n in ast.walk(one) if isinstance(n, ast.Name)}
            names = [n for n in nodes if isinstance(n, ast.Name) and n.id not in own]
            stored |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
            loaded |= {n.id for n in names if isinstance(n.ctx, ast.Load)} - bound
            bound |= stored
        found |= loaded & bound
    return found


def _annotations(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            note = getattr(node, name, None)
            if isinstance(note, ast.AST):
                yield from _names_of_note(note)


def _names_of_note(note: ast.AST) -> Iterator[str]:
    for node in ast.walk(note):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                yield from _names_of_note(ast.parse(node.value, mode="eval"))
            except SyntaxError:
                continue


def chains_in(source: Source, name: str) -> list[tuple[str, ...]]:
    """The attributes that are read off the name `name`: `a.b.c` gives ("b", "c")."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(source.text)):
        chain: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if chain and isinstance(inner, ast.Name) and inner.id == name:
            found.add(tuple(chain))
    return sorted(found)


def with_values(source: Source, value_of: Callable[[str], str | None]) -> Source:
    """A class whose body's `name = expression` have values in the place of expressions, where
    `value_of(name)` gives one."""
    (node,) = ast.parse(source.text).body
    edits = []
    for statement in node.body if isinstance(node, ast.ClassDef) else ():
        targets = [*getattr(statement, "targets", ()), getattr(statement, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        given = getattr(statement, "value", None)
        if len(names) == 1 and given is not None and not isinstance(given, ast.Constant):
            text = value_of(names[0])
            if text is not None and not isinstance(given, ast.Lambda):
                edits.append((given, text))
    return replace(source, text=replaced(source.text, edits))


def replaced(text: str, edits: Sequence[tuple[ast.stmt | ast.expr, str]]) -> str:
    """`text` with other texts in the place of nodes of it."""
    lines = text.encode().splitlines(keepends=True)
    for node, new in sorted(edits, key=lambda e: (e[0].lineno, e[0].col_offset), reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        end = lines[last][node.end_col_offset :]
        lines[first : last + 1] = [lines[first][: node.col_offset] + new.encode() + end]
    return b"".join(lines).decode()
