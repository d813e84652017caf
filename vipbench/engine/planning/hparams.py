"""Hyperparameters from the command line or a suite, checked against a method's HParams."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from vipbench.api import (
    Choice,
    Count,
    HParams,
    Method,
    NonNegative,
    Positive,
    ProportionBelowOne,
    Range,
)
from vipbench.errors import UsageError, unknown

# The limit of numbers that have none of their own: single precision overflows far beyond it.
LARGEST = 1_000_000
# The ranges of hyperparameters that a plugin names as everybody does but gives no range.
BY_NAME: Mapping[str, Any] = {
    "lr": Positive,
    "epochs": Count,
    "iterations": Count,
    "batch_size": Count,
    "n_ctx": Count,
    "logit_scale": Positive,
    "temperature": Positive,
    "weight_decay": NonNegative,
    "momentum": ProportionBelowOne,
    "dropout": ProportionBelowOne,
}

# What a text may be to stand for a number; `float` also takes `1_0` and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf)", re.IGNORECASE)


def make_hparams(method: type[Method], given: Mapping[str, Any]) -> HParams:
    """HParams of `method` with `given` values; raises UsageError naming method, name and type."""
    types_by_name, ranges = hparam_types(method), hparam_ranges(method)
    values = {}
    for name, value in given.items():
        if name not in types_by_name:
            if not types_by_name:
                raise UsageError(
                    f"unknown hyperparameter '{name}': method '{method.name}' has none"
                )
            raise unknown(f"hyperparameter of '{method.name}'", name, types_by_name)
        where = f"{method.name}.{name}"
        values[name] = _convert(value, types_by_name[name], where)
        _check_range(values[name], ranges[name], where)
        if name == "template" and values[name] and str(values[name]).count("{}") != 1:
            raise UsageError(f"{where} is {values[name]!r}; expected a text with one {{}}")
    try:
        return method.HParams(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"method '{method.name}': {error}") from error


def hparam_types(method: type[Method]) -> dict[str, Any]:
    """Hyperparameter -> its type."""
    hints = get_type_hints(method.HParams)
    return {f.name: hints[f.name] for f in dataclasses.fields(method.HParams) if f.init}


def hparam_ranges(method: type[Method]) -> dict[str, tuple[Any, ...]]:
    """Hyperparameter -> the constraints on it, as annotated_types has them; () for none."""
    hints = get_type_hints(method.HParams, include_extras=True)
    return {
        name: tuple(_constraints(hints[name])) or tuple(_constraints(BY_NAME.get(name)))
        for name in hparam_types(method)
    }


def range_text(constraints: Iterable[Any]) -> str:
    """A range in words, as documents and refusals have it."""
    words = {Gt: "above", Ge: "from", Lt: "below", Le: "at most"}
    return ", ".join(
        f"{words[type(item)]} {dataclasses.astuple(item)[0]}" if type(item) in words else str(item)
        for item in constraints
    )


def _constraints(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        kind, *found = get_args(kind)
        for item in found:
            if isinstance(item, FieldInfo):
                yield from item.metadata
            elif isinstance(item, GroupedMetadata):
                yield from item
            else:
                yield item
    if get_origin(kind) in (Union, types.UnionType):
        for inner in get_args(kind):
            yield from _constraints(inner)


def _check_range(value: Any, constraints: tuple[Any, ...], where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not any(isinstance(item, Gt | Ge) for item in constraints):
        constraints = (Ge(-LARGEST), *constraints)
    if not any(isinstance(item, Lt | Le) for item in constraints):
        constraints = (*constraints, Le(LARGEST))
    kind: Any = Annotated[type(value), *constraints]
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        what = "a whole number" if isinstance(value, int) else "a number"
        raise UsageError(f"{where} is {value}; expected {what} {range_text(constraints)}") from None


def search_space(method: type[Method]) -> dict[str, dict[str, Any]]:
    """Hyperparameter -> where `vipbench tune` looks for it, as JSON: {"low", "high", "log",
    "whole"} or {"values"}. Raises UsageError for a range of what the method has not, or of values
    that it does not take."""
    kinds, ranges = hparam_types(method), method.HParams.tunes
    rate = getattr(method.HParams(), "lr", None)
    if not ranges and isinstance(rate, float) and rate > 0:
        ranges = (Range("lr", float(f"{rate / 10:.3g}"), float(f"{rate * 10:.3g}"), log=True),)
    space: dict[str, dict[str, Any]] = {}
    for found in ranges:
        if not isinstance(found, Range | Choice):
            raise UsageError(
                f"method '{method.name}': HParams.tunes holds {found!r}; expected api.Range or "
                "api.Choice, each with a name"
            )
        if found.name not in kinds:
            raise unknown(f"hyperparameter of '{method.name}'", found.name, kinds, "(tunes)")
        if isinstance(found, Choice):
            for value in found.values:
                make_hparams(method, {found.name: value})
            space[found.name] = {"values": list(found.values)}
            continue
        whole = float not in (kinds[found.name], *get_args(kinds[found.name]))
        for end in (found.low, found.high):
            make_hparams(method, {found.name: int(end) if whole else end})
        space[found.name] = {"low": found.low, "high": found.high, "log": found.log, "whole": whole}
    return space


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin is Literal:
        choices = get_args(kind)
        if value in choices and type(value) in {type(c) for c in choices}:
            return value
        raise UsageError(f"{where} is {value!r}; expected one of {', '.join(map(str, choices))}")
    if origin in (Union, types.UnionType):
        inner = [a for a in get_args(kind) if a is not type(None)]
        if value is None:
            return None
        for candidate in inner:
            try:
                return _convert(value, candidate, where)
            except UsageError:
                if candidate is inner[-1]:
                    raise
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)  # YAML 1.1 reads 1e-3, without a dot, as text
    if kind in (int, bool, str) and type(value) is kind:
        return value
    if kind is str and isinstance(value, int | float):
        return str(value)
    name = {int: "a whole number", float: "a number", bool: "on or off", str: "text"}
    raise UsageError(f"{where} is {value!r}; expected {name.get(kind, kind)}")
