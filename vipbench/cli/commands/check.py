"""`vipbench check`: run the conformance tests on a plugin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vipbench.cli.exit_codes import FAILED, OK
from vipbench.errors import UsageError, unknown

if TYPE_CHECKING:
    from vipbench.plugins.registry import Kind, Registry


KINDS: tuple[Kind, ...] = ("method", "dataset", "backbone")


def check_command(what: str, plugins_dir: Path | None, data_root: Path | None) -> int:
    """Run the conformance suite on a file's plugins or on a registered name. Raises UsageError."""
    from vipbench import trust
    from vipbench.plugins.registry import load_registry

    file = Path(what)
    if file.suffix == ".py":
        if not file.is_file():
            raise UsageError(f"'{what}' is neither a file nor a registered name; give one of them")
        trust.name(file)
        registry = load_registry(file=file)
        mine = [
            (kind, name, name)
            for kind in KINDS
            for name, found in registry.of(kind).items()
            if found.plugin.file.resolve() == file.resolve()
        ]
        if not mine:
            raise UsageError(f"'{what}' registers nothing; docs/plugins.md describes the hooks")
        return _check_all(mine, registry, data_root)
    trust.name(what)
    registry = load_registry(plugins_dir)
    name = what.partition(":")[0]
    kinds = [kind for kind in KINDS if name in registry.of(kind)]
    if not kinds:
        known = [n for kind in KINDS for n in registry.of(kind)]
        raise unknown("method, dataset or backbone", name, known)
    return _check_all([(kind, name, what) for kind in kinds], registry, data_root)


def _check_all(
    what: Sequence[tuple[Kind, str, str]], registry: Registry, data_root: Path | None
) -> int:
    from vipbench import testing

    failed = 0
    for kind, name, source in what:
        try:
            if kind == "method":
                testing.check_method(registry.method(name)[0], registry=registry)
            elif kind == "backbone":
                testing.check_backbone(registry.backbone(source)[0])
            else:
                testing.check_dataset(registry.dataset(source)[0], data_root)
        except UsageError:
            raise
        except testing.ConformanceError as error:
            failed += 1
            print(f"{kind} {source}: broken: {error}")
        except Exception as error:
            failed += 1
            plugin = registry.get(kind, name).plugin
            print(f"{kind} {source}: {plugin} failed: {type(error).__name__}: {error}")
        else:
            print(f"{kind} {source}: passes all conformance tests")
    if failed:
        print(f"vipbench: {failed} of {len(what)} broken", file=sys.stderr)
    return FAILED if failed else OK
