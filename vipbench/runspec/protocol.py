"""The `protocol` of a run: what is trained, and on what it is tested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict

from vipbench.errors import UsageError, unknown
from vipbench.runspec import values as words
from vipbench.runspec.values import dataset_keys
from vipbench.runspec.yaml import parse_yaml

Name = Literal[
    "few-shot",
    "full",
    "base-to-new",
    "cross-dataset",
    "domain-shift",
    "imbalanced",
    "validation-free",
]
PROTOCOLS: tuple[str, ...] = get_args(Name)
# These are trained on one dataset and tested on the others.
TRANSFER = ("cross-dataset", "domain-shift")
# Target's class -> the classes of the source that stand for it.
Classes = dict[str, tuple[str, ...]]


def _name(value: Any) -> str:
    name = words.text(value, f"one of {', '.join(PROTOCOLS)}")
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return name


def _source(value: Any) -> str | None:
    return None if value is None else words.text(value, "one of the datasets")


def _classes(value: Any) -> dict[str, Classes]:
    if not isinstance(value, Mapping):
        raise UsageError(f"expected 'DATASET: {{its class: class of the source}}', got {value!r}")
    found: dict[str, Classes] = {}
    for dataset, pairs in value.items():
        name = words.text(dataset, "a dataset")
        if not isinstance(pairs, Mapping) or not pairs:
            raise UsageError(
                f"of '{name}' expected 'its class: class of the source' lines, "
                f"got {words.show(pairs)}"
            )
        found[name] = {
            words.text(own, f"a class of '{name}'"): tuple(
                words.text(one, "a class of the source")
                for one in (given if isinstance(given, list | tuple) else [given])
            )
            for own, given in pairs.items()
        }
        empty = [own for own, given in found[name].items() if not given]
        if empty:
            raise UsageError(f"'{empty[0]}' of '{name}' has an empty list of classes")
    return found


class ProtocolSpec(BaseModel):
    """What is trained, and on what it is tested; docs/protocols.md says what each word means.

    name: of PROTOCOLS. source: of cross-dataset and domain-shift, the dataset that is trained on;
    by default the run's first. classes: of domain-shift, dataset -> its class -> classes of the
    source; what is left out is matched by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Name, BeforeValidator(_name)] = "few-shot"
    source: Annotated[str | None, BeforeValidator(_source)] = None
    classes: Annotated[dict[str, Classes], BeforeValidator(_classes)] = {}

    @property
    def transfers(self) -> bool:
        """Whether it trains on one dataset and tests on others."""
        return self.name in TRANSFER

    def as_yaml(self) -> str | dict[str, Any]:
        """The value of a suite file that reads back as this."""
        if self.source is None and not self.classes:
            return self.name
        fields: dict[str, Any] = {"name": self.name}
        if self.source is not None:
            fields["source"] = self.source
        if self.classes:
            fields["classes"] = {
                dataset: {
                    own: given[0] if len(given) == 1 else list(given)
                    for own, given in pairs.items()
                }
                for dataset, pairs in self.classes.items()
            }
        return fields

    def as_text(self) -> str:
        """The value of --protocol that reads back as this."""
        if self.classes:
            import json

            return json.dumps(self.as_yaml(), ensure_ascii=False)
        return self.name if self.source is None else f"{self.name}[source={quoted(self.source)}]"

    @property
    def default_shots(self) -> tuple[Any, ...]:
        """The shots of a run that names none."""
        return ("full",) if self.name == "full" else (1, 2, 4, 8, 16)

    @property
    def default_validation(self) -> str:
        """The validation policy of a run that names none."""
        return "none" if self.name == "validation-free" else "min(k,4)"

    def trained_on(self, datasets: Sequence[str]) -> str:
        """The source among `datasets`. Raises UsageError."""
        return datasets[0] if self.source is None else find(self.source, datasets)

    def check(self, datasets: Sequence[str]) -> None:
        """Raise UsageError where source, classes and `datasets` do not fit together."""
        if not self.transfers and self.source is not None:
            raise UsageError(f"'source' belongs to {' and '.join(TRANSFER)}, not to '{self.name}'")
        if self.name != "domain-shift" and self.classes:
            raise UsageError(f"'classes' belongs to domain-shift, not to '{self.name}'")
        if not self.transfers:
            return
        if len(datasets) < 2:
            raise UsageError(
                f"'{self.name}' trains on one dataset and tests on others; give two or more "
                f"datasets, got {', '.join(datasets)}"
            )
        source = self.trained_on(datasets)
        for name in self.classes:
            if find(name, datasets) == source:
                raise UsageError(f"classes: '{name}' is the source; name the datasets tested on")


def quoted(text: str) -> str:
    """A value inside brackets, in quotes where it needs them."""
    return words.default_label("", {"x": text})[len("[x=") : -1]


def find(name: str, datasets: Iterable[str]) -> str:
    """The dataset that `name` stands for: as given, or by the name of its file or folder, as tables
    have it. Raises UsageError."""
    known = list(datasets)
    if name in known:
        return name
    fitting = [d for d in known if name in dataset_keys([d]) and name != "*"]
    if len(fitting) != 1:
        raise unknown("dataset", name, known, "The protocol's datasets are those of the run.")
    return fitting[0]


def protocol_of(value: Any) -> Any:
    """A protocol as a flag or a suite gives it: a word, `word[source=DATASET]`, or a mapping."""
    if isinstance(value, ProtocolSpec):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_yaml(value, "--protocol").value
    if isinstance(value, str):
        name, given = words.method_text(value)
        value = {"name": name, **given}
    if not isinstance(value, Mapping) or "name" not in value:
        raise UsageError(
            f"expected one of {', '.join(PROTOCOLS)}, or 'name: …' with 'source: …', "
            f"got {words.show(value)}"
        )
    for key in value:
        if key not in ProtocolSpec.model_fields:
            raise unknown("key of protocol", str(key), ProtocolSpec.model_fields)
    return dict(value)


def check_together(protocol: ProtocolSpec, run: Any) -> None:
    """Raise UsageError, naming the key, where a run's other keys contradict its protocol."""
    try:
        protocol.check(run.datasets)
    except UsageError as error:
        raise UsageError(f"protocol: {error}") from None
    fixed: dict[str, dict[str, Any]] = {
        "full": {"shots": ("full",)},
        "validation-free": {"validation": "none", "selection": "last"},
        "imbalanced": {"sampler": "nested", "shots_unit": "image"},
    }
    for key, value in fixed.get(protocol.name, {}).items():
        given = getattr(run, key)
        if given != value:
            text, only = (
                ", ".join(map(str, v)) if isinstance(v, tuple) else v for v in (given, value)
            )
            raise UsageError(
                f"{key}: the protocol '{protocol.name}' requires '{only}', got '{text}'; "
                f"leave {key} out, or give another protocol"
            )
