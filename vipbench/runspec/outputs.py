"""What a run leaves in its folder besides table.md: the tables and figures that a suite names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vipbench.errors import UsageError, unknown
from vipbench.runspec import values as words
from vipbench.runspec.errors import PlacedError, sentence

# As vipbench.results has them, whose modules are slow to import; a test holds them together.
PRESETS = ("comparison", "ablation", "fewshot", "base-to-new", "transfer", "knowledge")
KINDS = ("fewshot", "confusion", "reliability", "cd", "bars", "knowledge", "training")
SPREADS = ("sd", "ci-seeds", "ci-images", "ci-both", "none")
HIGHLIGHTS = ("best", "significant", "none")
# Names of files that a run writes in any case.
TAKEN = ("table", "suite", "results")


def file_name(value: Any) -> str:
    """The beginning of a file's name."""
    name = words.text(value, "a file's name without its ending")
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"expected letters, digits, - and _, got {words.show(name)}")
    if name in TAKEN:
        raise UsageError(f"'{name}' is the name of a file that every run writes; take another")
    return name


def _metrics(value: Any) -> tuple[str, ...]:
    return words.once(map(str, words.items(value, "metrics such as accuracy,auroc")))


class _Output(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def as_yaml(self) -> str | dict[str, Any]:
        """The entry of a suite file that reads back as this."""
        given = {key: getattr(self, key) for key in type(self).model_fields}
        kept = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in given.items()
            if value != type(self).model_fields[key].default and value is not None
        }
        word = given[type(self).short()]
        if set(kept) <= {type(self).short(), "name"} and kept.get("name") == word and word:
            return str(word)
        return kept

    @classmethod
    def short(cls) -> str:
        """The key that an entry which is one word alone gives."""
        raise NotImplementedError


class TableOutput(_Output):
    """A table: NAME.md and NAME.tex.

    name: by default the preset. preset, metrics, aggregate, highlight, average: as the flags of
    `vipbench table`.
    """

    preset: str | None = None
    name: Annotated[str, BeforeValidator(file_name)] = Field(
        default_factory=lambda known: known.get("preset") or ""
    )
    metrics: Annotated[tuple[str, ...], BeforeValidator(_metrics)] = ()
    aggregate: str = "sd"
    highlight: str = "best"
    average: bool = False

    @classmethod
    def short(cls) -> str:
        """The preset."""
        return "preset"

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check("preset", self.preset, PRESETS)
        _check("aggregate", self.aggregate, SPREADS)
        _check("highlight", self.highlight, HIGHLIGHTS)
        if not self.name:
            raise UsageError("a table needs a name, or a preset, whose name it takes")
        return self


class FigureOutput(_Output):
    """A figure: NAME.pdf, NAME.svg, NAME.png and its caption in NAME.txt.

    name: by default the kind. kind, metric, aggregate: as the flags of `vipbench plot`.
    """

    kind: str
    name: Annotated[str, BeforeValidator(file_name)] = Field(
        default_factory=lambda known: known.get("kind", "")
    )
    metric: str = "accuracy"
    aggregate: str | None = None

    @classmethod
    def short(cls) -> str:
        """The kind."""
        return "kind"

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check("kind", self.kind, KINDS)
        _check("aggregate", self.aggregate, SPREADS)
        return self


T = TypeVar("T", TableOutput, FigureOutput)


def _check(what: str, value: str | None, known: Iterable[str]) -> None:
    if value is not None and value not in known:
        raise unknown(what, value, known)


def table_outputs(value: Any) -> tuple[TableOutput, ...]:
    """Presets separated by commas, or a list of presets and of `{name, preset, aggregate, …}`."""
    return _read(TableOutput, value, "tables such as comparison,ablation")


def figure_outputs(value: Any) -> tuple[FigureOutput, ...]:
    """Kinds separated by commas, or a list of kinds and of `{kind, name, metric, aggregate}`."""
    return _read(FigureOutput, value, "figures such as fewshot,confusion")


def _read(made: type[T], value: Any, what: str) -> tuple[T, ...]:
    if value is None or value == () or value == []:
        return ()
    found: list[T] = []
    for i, item in enumerate(words.items(value, what)):
        try:
            found.append(_one(made, item))
        except ValidationError as error:
            inner = error.errors(include_url=False)[0]
            raise PlacedError(sentence(inner, made.model_fields, f"{i + 1}: "), (i,)) from None
        except UsageError as error:
            raise PlacedError(f"{i + 1}: {error}", (i,)) from None
    return words.once(found, lambda one: one.name)


def _one(made: type[T], item: Any) -> T:
    if isinstance(item, made):
        return item
    if isinstance(item, str):
        return made.model_validate({made.short(): item})
    if not isinstance(item, Mapping):
        raise UsageError(f"expected one word, or keys and values, got {words.show(item)}")
    return made.model_validate(dict(item))
