"""Discovery of plugins: built-ins, entry points, single files; names, provenance, error texts."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pluggy

from vipbench import __version__, hookspecs
from vipbench.api import Dataset, HParams, ImageBackbone, Method
from vipbench.errors import UsageError, unknown
from vipbench.fetching import Needed
from vipbench.plugins.files import (
    Plugin,
    allowed_code,
    describe,
    every_source,
    load_entry_point,
    load_file,
    provenance,
    remember,
)

__all__ = ["Plugin", "Registered", "Registry", "load_registry", "provenance"]

# Every module of these rooms is a plugin, but for those with a leading underscore.
BUILTIN_ROOMS = ("methods", "backbones", "datasets")

Kind = Literal["method", "backbone", "dataset"]
KINDS: tuple[Kind, ...] = ("method", "backbone", "dataset")

# Called with the source of every backbone before it is loaded.
LOADING: list[Callable[[str], None]] = []


@dataclass(frozen=True)
class Registered:
    """A registered thing: a Method class, or a factory of backbones or datasets; files, known,
    suggest: see hookspecs.RegisterBackbone."""

    kind: Kind
    name: str
    plugin: Plugin
    target: Any
    help: str = ""
    files: Callable[[str | None], Iterable[Needed]] | None = None
    known: tuple[str, ...] = ()
    suggest: Callable[[str], Iterable[str]] | None = None


# The dataset that reads a file, by its ending.
READERS = {".csv": "csv", ".tsv": "csv", ".npz": "npz", ".json": "split"}


@dataclass
class Registry:
    """All registered methods, backbones and datasets."""

    methods: dict[str, Registered] = field(default_factory=dict)
    backbones: dict[str, Registered] = field(default_factory=dict)
    datasets: dict[str, Registered] = field(default_factory=dict)
    # The tracker's hooks of the plugin that was loaded last with some.
    tracker: dict[str, Callable[..., None]] | None = None

    def of(self, kind: Kind) -> dict[str, Registered]:
        """The table of one kind."""
        tables = {"method": self.methods, "backbone": self.backbones, "dataset": self.datasets}
        return tables[kind]

    def get(self, kind: Kind, name: str) -> Registered:
        """The registered `name`; raises UsageError with close matches."""
        table = self.of(kind)
        if name in table:
            return table[name]
        meant = [source for one in table.values() if one.suggest for source in one.suggest(name)]
        path = Path(name)
        reader = "folder" if path.is_dir() else READERS.get(path.suffix.lower())
        if kind == "dataset" and reader and path.exists():
            meant = [f"{reader}:{name}"]
        raise unknown(kind, name, table, f"`vipbench list {kind}s` lists them.", meant)

    def check_source(self, source: str) -> None:
        """Raise UsageError, with close matches, where nothing is registered under the name of a
        backbone or dataset `NAME[:ARG]`."""
        known = [*self.backbones, *self.datasets]
        if (name := source.partition(":")[0]) not in known:
            raise unknown("backbone or dataset", name, known, "A suite's file ends in .yaml.")

    def method(self, name: str) -> tuple[type[Method], Plugin]:
        """A method's class and its plugin."""
        found = self.get("method", name)
        return found.target, found.plugin

    def dataset(self, source: str) -> tuple[Dataset, Plugin]:
        """The dataset of `NAME[:ARG]`; raises UsageError."""
        return self._make("dataset", source, Dataset)

    def backbone(self, source: str) -> tuple[ImageBackbone, Plugin]:
        """The backbone of `NAME[:ARG]`, its weights loaded; raises UsageError."""
        for on_load in LOADING:
            on_load(source)
        return self._make("backbone", source, ImageBackbone)

    def files(self, source: str) -> Iterable[Needed]:
        """What the backbone `NAME[:ARG]` needs on the disk, one after another; raises UsageError,
        also while it is gone through."""
        name, colon, argument = source.partition(":")
        found = self.get("backbone", name)
        return () if found.files is None else found.files(argument if colon else None)

    def _make(self, kind: Kind, source: str, base: type[Any]) -> tuple[Any, Plugin]:
        name, colon, argument = source.partition(":")
        found = self.get(kind, name)
        try:
            made = found.target(argument if colon else None)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"{found.plugin}: hook register_{kind}s: the factory of '{source}' failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(made, base):
            raise UsageError(
                f"{found.plugin}: hook register_{kind}s: the factory of '{source}' gave a "
                f"{type(made).__name__}; expected a {base.__name__}"
            )
        return made, found.plugin


def builtin_modules() -> list[str]:
    """The modules that vipbench's own methods, backbones and datasets are in, room by room."""
    found = []
    for room in BUILTIN_ROOMS:
        package = importlib.import_module(f"vipbench.{room}")
        names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
        found += [f"{package.__name__}.{name}" for name in names if not name.startswith("_")]
    return found


def load_registry(
    plugins_dir: Path | None = None,
    failed: list[UsageError] | None = None,
    file: Path | None = None,
    only: Collection[str] | None = None,
    importing: Callable[[str], None] = lambda source: None,
) -> Registry:
    """Load built-ins, entry points and the files of `plugins_dir`, or the one `file`, and let each
    register.

    only: the sources (see `Plugin.source`) of the users' plugins to load; by default all.
    importing: called with each source before its code runs, and "" at the end.
    Raises UntrustedCodeError where the files may not run (see `vipbench.trust`), and UsageError
    naming plugin and file for a failing import, a misspelled hook, a second use of a name, or
    something that is not what its hook registers; where `failed` is given, it takes these, and the
    others are loaded.
    """
    manager = pluggy.PluginManager("vipbench")
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    for module_name in builtin_modules():
        module = importlib.import_module(module_name)
        _add(manager, registry, module, describe("vipbench", __version__, module, builtin=True))
    asked = file or plugins_dir
    chosen = {
        source: one
        for source, one in every_source(plugins_dir, file).items()
        if only is None or source in only
    }
    files = [one for one in chosen.values() if isinstance(one, Path)]
    code = allowed_code(files, asked) if asked and files else {}
    for source, one in chosen.items():
        importing(source)
        try:
            if isinstance(one, Path):
                module = load_file(one, code[one.resolve()])
                plugin = describe(one.stem, None, module)
            else:
                module, dist = load_entry_point(one), one.dist
                version = dist.version if dist else None
                plugin = describe(
                    dist.name if dist else one.name, version, module, distribution=dist
                )
            plugin = replace(plugin, source=source)
            remember(plugin)
            before = {kind: dict(registry.of(kind)) for kind in KINDS}
            _add(manager, registry, module, plugin)
            for kind, table in before.items():
                if not table.items() <= registry.of(kind).items():
                    raise UsageError(f"{plugin}: it changes the {kind}s that others register")
        except UsageError as error:
            if failed is None:
                raise
            failed.append(error)
    importing("")
    return registry


def _add(
    manager: pluggy.PluginManager, registry: Registry, module: ModuleType, plugin: Plugin
) -> None:
    try:
        manager.register(module, name=f"{plugin.name}:{module.__name__}")
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = [name for name in vars(hookspecs) if name.startswith(("register_", "on_"))]
        raise UsageError(f"{plugin}: {error}; the hooks are {', '.join(known)}") from error
    hooks: list[tuple[str, Callable[..., None]]] = [
        ("register_methods", partial(_register_method, registry, plugin)),
        ("register_backbones", partial(_register_factory, registry, plugin, "backbone")),
        ("register_datasets", partial(_register_factory, registry, plugin, "dataset")),
    ]
    if not any(hasattr(module, hook) for hook, _ in hooks):
        for name, value in vars(module).items():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Method) and not name.startswith("_"):
                _register_method(registry, plugin, value)
    found = {h: getattr(module, h) for h in hookspecs.TRACKER_HOOKS if hasattr(module, h)}
    for hook in [*found, *(hook for hook, _ in hooks if hasattr(module, hook))]:
        if not hasattr(getattr(module, hook), "vipbench_impl"):
            raise UsageError(
                f"{plugin}: {hook} has no decorator; write @vipbench.hookimpl above it"
            )
    if found:
        registry.tracker = found
    for hook, register in hooks:
        function = getattr(module, hook, None)
        if function is None:
            continue
        try:
            function(register)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"{plugin}: hook {hook} failed: {type(error).__name__}: {error}"
            ) from error


def _register_method(registry: Registry, plugin: Plugin, method: type[Method]) -> None:
    where = f"{plugin}: hook register_methods"
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UsageError(f"{where}: got {method!r}; expected a subclass of vipbench.api.Method")
    for attribute in ("name", "kind"):
        if not isinstance(getattr(method, attribute, None), str):
            raise UsageError(f"{where}: {method.__name__} lacks the class attribute '{attribute}'")
    if not issubclass(method.HParams, HParams):
        raise UsageError(f"{where}: {method.__name__}.HParams must subclass vipbench.api.HParams")
    if plugin.builtin:
        method.bibtex = _builtin_bibtex().get(method.name, "")
    _store(registry, Registered("method", method.name, plugin, method, _first_line(method)))


@cache
def _builtin_bibtex() -> dict[str, str]:
    """Built-in method -> its BibTeX entry, from methods/methods.bib."""
    text = resources.files("vipbench").joinpath("methods", "methods.bib").read_text("utf-8")
    parts = (part.partition("\n") for part in re.split(r"^% ", text, flags=re.MULTILINE)[1:])
    return {name: entry.strip() for names, _, entry in parts for name in names.split(", ")}


def _register_factory(
    registry: Registry,
    plugin: Plugin,
    kind: Kind,
    name: str,
    factory: Callable[[str | None], Any],
    help: str = "",
    files: Callable[[str | None], Iterable[Needed]] | None = None,
    known: Sequence[str] = (),
    suggest: Callable[[str], Iterable[str]] | None = None,
) -> None:
    if not callable(factory):
        raise UsageError(
            f"{plugin}: hook register_{kind}s: the factory of '{name}' is not callable"
        )
    _store(registry, Registered(kind, name, plugin, factory, help, files, tuple(known), suggest))


def _store(registry: Registry, new: Registered) -> None:
    legal = new.name and all(c.isalnum() or c in "-_+." for c in new.name)
    if not legal or new.name != new.name.lower():
        raise UsageError(
            f"{new.plugin}: the {new.kind} name '{new.name}' must be a lowercase word of letters, "
            "digits and - _ + ."
        )
    table = registry.of(new.kind)
    if new.name in table:
        raise UsageError(
            f"two plugins register the {new.kind} '{new.name}': {table[new.name].plugin} and "
            f"{new.plugin}; rename one or remove it"
        )
    table[new.name] = new


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]
