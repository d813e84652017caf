"""From the arguments of `vipbench.run` and `vipbench.plan` to a RunSpec.

One function per argument turns what Python gives into what a suite says. `folder` is where a
function may write what a suite can only name by its file: the results folder, or for a plan a
folder that is removed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, TypeVar

from vipbench import trust
from vipbench.engine.method_classes import named_methods
from vipbench.errors import UsageError, unknown
from vipbench.files import make_folder, write
from vipbench.runspec import values as words
from vipbench.runspec.run import MethodSpec, RunSpec, demo_suite

T = TypeVar("T")
Several: TypeAlias = T | Iterable[T]
Methods: TypeAlias = Several[str | type | Mapping[str, Any]]
Datasets: TypeAlias = Several[str | Mapping[str, Any]]
Backbones: TypeAlias = Several[str | Mapping[str, Any]]
PathLike: TypeAlias = str | os.PathLike[str]

PLUGINS_VARIABLE = "VIPBENCH_PLUGINS_DIR"


class Fields(TypedDict, total=False):
    """The other fields of a RunSpec, which documents them."""

    protocol: str | Mapping[str, Any]
    data_root: PathLike
    symptoms: PathLike | Mapping[str, Any]
    descriptions: PathLike | Mapping[str, Any]
    templates: PathLike | Sequence[str] | Mapping[str, Any]
    images: PathLike | Mapping[str, PathLike]
    knowledge: Several[str]
    plugins_dir: PathLike
    device: Several[str]
    workers: int
    precision: str
    feature_precision: str
    views: int | str
    sampler: str
    validation: str
    selection: str
    score_on: str
    profile: str
    shots_unit: str
    allow_group_overlap: bool
    cell_timeout: float
    title: str
    executor: str | Mapping[str, Any]
    track: Several[str]
    tables: Several[str | Mapping[str, Any]]
    figures: Several[str | Mapping[str, Any]]


def spec_of(given: Mapping[str, Any], folder: Path | None = None) -> RunSpec:
    """The run that the arguments describe; None is an argument that is not given. folder: where
    files of what Python gives are written, by default the run's own `out`. Raises UsageError."""
    known = {name: plain(value) for name, value in given.items() if value is not None}
    for name in known:
        if name not in RunSpec.model_fields:
            raise unknown("argument", name, RunSpec.model_fields)
    if not any(name in known for name in ("methods", "datasets", "backbones")):
        demo = demo_suite()
        known = {name: getattr(demo, name) for name in demo.model_fields_set} | known
    if "plugins_dir" not in known and os.environ.get(PLUGINS_VARIABLE):
        known["plugins_dir"] = os.environ[PLUGINS_VARIABLE]
    place = folder or _path(known, "out") or Path(RunSpec.model_fields["out"].default)
    # What the user's own code names may run, as what a flag names.
    if (plugins_dir := _path(known, "plugins_dir")) is not None:
        trust.name(plugins_dir)
    if "methods" in known:
        known["methods"], known["plugins_dir"] = named_methods(
            known["methods"], place / "plugins", plugins_dir
        )
    for name, read in READERS.items():
        if name in known:
            known[name] = read(known[name], place)
    spec = RunSpec.parse(known)
    for backbone in spec.backbones:
        trust.name(words.labelled(backbone)[1])
    for text in spec.executor.code if spec.executor else ():
        trust.name(text)
    return spec


def _path(known: Mapping[str, Any], name: str) -> Path | None:
    try:
        return words.path(known.get(name))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def methods(value: Any, folder: Path) -> Any:
    """Names, and mappings as in a suite."""
    return (
        [_method(item, folder) for item in value] if _is_sequence(value) else _method(value, folder)
    )


def _method(value: Any, folder: Path) -> Any:
    if isinstance(value, str | MethodSpec):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    raise unfit(
        "methods",
        value,
        "a name, a Method class, or a mapping such as {'name': 'vip', 'label': 'ours'}",
    )


def datasets(value: Any, folder: Path) -> Any:
    """Names, and mappings from a name to data, which are written into `folder`."""
    found: list[str] = []
    for item in value if _is_sequence(value) else [value]:
        if isinstance(item, str):
            found.append(item)
        elif type(item) is dict:
            # Not before it is needed: a run from the command line brings no data.
            from vipbench.engine.given.data import write_data

            found += [write_data(name, data, folder) for name, data in item.items()]
        else:
            names = "a name such as 'synthderm' or 'folder:PATH', or {'NAME': DATA}"
            raise unfit("datasets", item, names)
    return found


def backbones(value: Any, folder: Path) -> Any:
    """Names, and mappings from a label to a name or to a loaded model."""
    expected = (
        "a name such as 'openclip:ViT-B-16/openai', or a mapping from the name of your own to one, "
        "or to a loaded (model, preprocess, tokenizer) or (model, processor)"
    )
    if _is_model(value):
        raise unfit("backbones", value, "{'ours': (model, ...)}, with a name for the model")
    found: list[Any] = []
    for item in value if _is_sequence(value) else [value]:
        if isinstance(item, Mapping):
            found.append(
                {
                    name: one if isinstance(one, str) else _cached_model(name, one)
                    for name, one in item.items()
                }
            )
        elif isinstance(item, str):
            found.append(item)
        else:
            raise unfit("backbones", item, expected)
    return found


def _is_model(value: Any) -> bool:
    return _is_sequence(value) and any(hasattr(part, "state_dict") for part in value)


def _cached_model(name: str, given: Any) -> str:
    from vipbench.engine.kept import cache_folder

    if not _is_model(given):
        raise unfit(
            f"backbones: '{name}'",
            given,
            "(model, preprocess, tokenizer) of open_clip, "
            "(model, processor) of transformers, or a name",
        )
    from vipbench.plugins.loaded_models import keep_model

    return keep_model(name, given, cache_folder() / "models")


def symptoms(value: Any, folder: Path) -> Any:
    """A file, the texts themselves (class name -> texts), or a mapping from dataset or label to
    either."""
    return _texts("symptoms", value, folder)


def descriptions(value: Any, folder: Path) -> Any:
    """See `symptoms`."""
    return _texts("descriptions", value, folder)


def templates(value: Any, folder: Path) -> Any:
    """A file, a list of templates, or a mapping from dataset or label to either."""
    return _texts("templates", value, folder)


def _texts(kind: str, value: Any, folder: Path) -> Any:
    if isinstance(value, str | Path):
        return value
    of_classes = kind != "templates"
    if not isinstance(value, Mapping) or not value:
        if not of_classes and _is_sequence(value):
            return _written(kind, value, folder)
        texts = "{class: [text, ...]}" if of_classes else "[text, ...]"
        expected = f"a file, {texts}, or {{dataset or label: file or such texts}}"
        raise unfit(kind, value, expected)
    if of_classes and ("classes" in value or all(_is_sequence(of) for of in value.values())):
        return _written(kind, value, folder)
    return {name: _texts(kind, one, folder) for name, one in value.items()}


def _written(kind: str, value: Any, folder: Path) -> Path:
    """A file of the texts, named by their content: those of another run stay as they are."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind}: expected texts, and {error}") from None
    place = folder / "data"
    make_folder(place)
    file = place / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    write(file, text + "\n")
    return file


READERS: dict[str, Callable[[Any, Path], Any]] = {
    "methods": methods,
    "datasets": datasets,
    "backbones": backbones,
    "symptoms": symptoms,
    "descriptions": descriptions,
    "templates": templates,
}


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def plain(value: Any) -> Any:
    """`value` with built-in types in the place of paths, ranges, arrays and their numbers."""
    if isinstance(value, os.PathLike):
        return Path(value)
    if isinstance(value, set | frozenset):
        raise UsageError(f"expected an ordered collection, got {words.show(value)}; give a list")
    if isinstance(value, range | Iterator):
        value = list(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def unfit(argument: str, value: Any, expected: str) -> UsageError:
    """The error for a value of a type that an argument does not take."""
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return UsageError(f"{argument}: expected {expected}, got {words.show(value)} of type {name}")
