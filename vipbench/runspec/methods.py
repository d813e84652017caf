"""The rows of a run: methods with their hyperparameters, as a flag or a suite gives them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vipbench.errors import UsageError, unknown
from vipbench.runspec import values as words
from vipbench.runspec.errors import PlacedError, sentence
from vipbench.runspec.yaml import Scalar


class MethodSpec(BaseModel):
    """One row of the table: a method, its hyperparameters where they are not the paper's.

    name: the registered name. hparams: hyperparameter -> value. label: what the table shows;
    by default `name`, or `name[hparam=value,...]` where hyperparameters are given. note: what a
    reader must know of the row: records keep it, tables show it below.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, BeforeValidator(words.word)]
    hparams: Annotated[dict[str, Scalar], BeforeValidator(words.hparams)] = {}
    label: Annotated[str, BeforeValidator(words.label)] = Field(
        default_factory=lambda got: words.default_label(got["name"], got["hparams"])
    )
    note: Annotated[str, BeforeValidator(words.note)] = ""

    @property
    def plain(self) -> str:
        """`name` or `name[hparam=value,...]`: the default label, and how a flag gives it."""
        return words.default_label(self.name, self.hparams)

    @property
    def own_label(self) -> bool:
        """Whether the label says something else than the default one."""
        return self.label != self.plain

    def with_hparams(self, changes: Mapping[str, Scalar]) -> MethodSpec:
        """This method with `changes`, and a label that says so: results of the two never mix."""
        label = {"label": words.default_label(self.label, changes)} if self.own_label else {}
        hparams = {**self.hparams, **changes}
        return MethodSpec(name=self.name, hparams=hparams, note=self.note, **label)

    def as_yaml(self) -> str | dict[str, Scalar]:
        """The entry of a suite file that reads back as this."""
        if not self.hparams and not self.own_label and not self.note:
            return self.name
        return {
            "name": self.name,
            **({"label": self.label} if self.own_label else {}),
            **({"note": self.note} if self.note else {}),
            **self.hparams,
        }


def methods_of(value: Any) -> tuple[MethodSpec, ...]:
    """`a,b[hparam=value]`, or a list of such texts and of `{name, label, hparam: value}`."""
    found: list[MethodSpec] = []
    for i, item in enumerate(words.items(value, "methods such as coop,vip[context=off]")):
        try:
            found.extend(_entry(item))
        except ValidationError as error:
            inner = error.errors(include_url=False)[0]
            raise PlacedError(sentence(inner, {}, f"method {i + 1}: "), (i,)) from None
        except UsageError as error:
            raise PlacedError(f"method {i + 1}: {error}", (i,)) from None
    by_label = {method.label: method for method in reversed(found)}
    for method in found:
        if by_label[method.label] is not method:
            raise UsageError(f"two methods are labelled '{method.label}'; give each its own label")
    words.once(found, lambda m: words.default_label(m.name, dict(sorted(m.hparams.items()))))
    return tuple(found)


def _entry(item: Any) -> list[MethodSpec]:
    if isinstance(item, MethodSpec):
        return [item]
    if isinstance(item, str):
        texts = [words.method_text(part) for part in words.items(item, "a method")]
        return [MethodSpec(name=name, hparams=hparams) for name, hparams in texts]
    if not isinstance(item, Mapping):
        raise UsageError(f"expected a name or keys such as 'name: vip', got {words.show(item)}")
    if "name" not in item:
        raise UsageError(f"a method's entry needs 'name', got {words.show(dict(item))}")
    hparams = {key: value for key, value in item.items() if key not in words.RESERVED}
    hparams |= words.hparams(item.get("hparams", {}))
    lists = {key: value for key, value in hparams.items() if isinstance(value, list)}
    found = []
    for chosen in itertools.product(*lists.values()):
        varied = dict(zip(lists, chosen, strict=True))
        row_fields = {key: item[key] for key in ("label", "note") if key in item}
        if "label" in row_fields and varied:
            row_fields["label"] = words.default_label(words.label(item["label"]), varied)
        found.append(MethodSpec(name=item["name"], hparams={**hparams, **varied}, **row_fields))
    if not found:
        raise UsageError("a list of values is empty")
    return found


def with_settings(
    methods: tuple[MethodSpec, ...], settings: Sequence[str]
) -> tuple[MethodSpec, ...]:
    """`methods` with --set's `settings`, for every entry of their method. Raises UsageError."""
    changes: dict[str, dict[str, Scalar]] = {}
    known = {method.name for method in methods}
    for flag in settings:
        name, hparam, value = words.setting(flag)
        if name not in known:
            raise unknown("method", name, known, "--set takes a method of this run.")
        if hparam in changes.setdefault(name, {}):
            raise UsageError(f"--set is given twice for {name}.{hparam}")
        changes[name][hparam] = value
    return tuple(m.with_hparams(changes[m.name]) if m.name in changes else m for m in methods)
