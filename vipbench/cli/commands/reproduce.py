"""`vipbench reproduce`: run a bundle again and compare the results."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vipbench import __version__, trust
from vipbench.cli.exit_codes import FAILED, OK
from vipbench.engine.rerun import compare
from vipbench.errors import UsageError
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record, sha256
from vipbench.results.sharing.bundle import RECORDS, as_dict, read_bundle, unpack_bundle
from vipbench.results.sharing.files import json_rows
from vipbench.results.sharing.limits import Budget
from vipbench.results.sharing.privacy import public_backbone, public_source
from vipbench.results.sharing.rows import read_rows
from vipbench.runspec.places import ON_DISK
from vipbench.runspec.run import SUITE_NAME, TEXT_FILES, RunSpec
from vipbench.runspec.yaml import MAX_BYTES
from vipbench.text import clean, plural


def reproduce_command(
    bundle: Path,
    out: Path,
    data_root: Path | None,
    datasets: Sequence[str],
    yes: bool,
    tolerance: float,
) -> int:
    """Unpack a bundle into OUT/bundle, run its suite into OUT, compare. Raises UsageError."""
    manifest, files = read_bundle(bundle)
    _refuse_paths(bundle, files[SUITE_NAME])
    pairs = _records(files[RECORDS], Budget(bundle))
    inside = out / "bundle"
    try:
        unpack_bundle(files, inside)
    except FileExistsError:
        there = {name: inside / name for name in files}
        if any(not p.is_file() or p.read_bytes() != files[n] for n, p in there.items()):
            raise UsageError(f"{inside} already has another bundle; give another --out") from None
    _print_contents(bundle, manifest, files)
    spec = _spec(inside, out, data_root, datasets, manifest)
    if yes:
        trust.allow_everything()
    from vipbench.cli.commands.run import run_command
    from vipbench.cli.commands.verify import show_reruns

    status = run_command(spec)
    if status not in (OK, FAILED):
        return status
    wrong = show_reruns(compare(pairs, out, tolerance), tolerance, "all of the bundle")
    print("reproduced" if not wrong else f"{plural(wrong, 'cell')} not reproduced")
    return FAILED if wrong else OK


def _refuse_paths(bundle: Path, text: bytes) -> None:
    """Which files are read and where jobs are sent is the user's decision, not that of a bundle."""
    if len(text) > MAX_BYTES:
        raise UsageError(f"{bundle}: its suite has {len(text):,} bytes; expected {MAX_BYTES:,}")
    suite = RunSpec.from_yaml_text(text.decode(errors="replace"), f"{bundle}: suite")
    sources = {*suite.datasets, *filter(None, [suite.protocol.source])}
    named = {
        "folders of images": [str(folder) for folder in suite.images.values()],
        "data by a path": [d for d in sources if _names_a_path(d)],
        "weights by a path": [b for b in suite.backbones if public_backbone(b) != b],
        "an executor": [suite.executor.name] if suite.executor else [],
        "trackers": [*suite.track],
    }
    for what, found in named.items():
        if found:
            raise UsageError(
                f"{bundle}: its suite names {what} ({', '.join(found)}), which is not allowed in a "
                "bundle; nothing was unpacked. Give your copy of the data with --dataset "
                "NAME=SOURCE, and name a folder of images in its card: `images: DIR`"
            )


def _names_a_path(source: str) -> bool:
    name, _, argument = source.partition(":")
    if name == "hf":  # names on the Hub have a slash too
        return public_source(source, None) != source
    on_disk = name in ON_DISK and not argument.startswith("PATH")
    return on_disk or any(char in argument for char in "/\\~")


def _records(data: bytes, budget: Budget) -> list[tuple[Record, Predictions | None]]:
    try:
        rows = read_rows(json_rows(io.BytesIO(data), budget), f"the bundle's {RECORDS}")
        found = [pair for pair in rows if pair[0].ok]
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the bundle's {RECORDS} cannot be read: {error}") from None
    if not found:
        raise UsageError(
            f"the bundle's {RECORDS} has no results to reproduce; run its suite instead: "
            f"`vipbench run --suite {SUITE_NAME}`"
        )
    return found


def _print_contents(bundle: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    print(f"{bundle}: {clean(str(manifest.get('title') or 'a run'))}")
    print(f"  made with vipbench {clean(str(manifest.get('vipbench')))}, this is {__version__}")
    for name, version in as_dict(manifest.get("requires")).items():
        print(f"  needs the installed plugin {clean(str(name))} {clean(str(version))}")
    if manifest.get("contains_patient_data"):
        print("  contains-patient-data: protect it like the images")
    for name, data in files.items():
        if name.startswith("plugins/"):
            lines = data.count(b"\n")
            print(f"  plugin code: {name}, {lines:,} lines, SHA-256 {sha256(data)}")


def _spec(
    inside: Path,
    out: Path,
    data_root: Path | None,
    given: Sequence[str],
    manifest: Mapping[str, Any],
) -> RunSpec:
    spec = RunSpec.from_yaml(inside / SUITE_NAME)
    sources = {
        name: entry["source"]
        for name, entry in as_dict(manifest.get("datasets")).items()
        if isinstance(entry, dict) and isinstance(entry.get("source"), str)
    }
    own: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or name not in sources:
            raise UsageError(
                f"--dataset {text}: expected NAME=SOURCE, with a NAME of {', '.join(sources)}"
            )
        own[sources[name]] = source
    for name, source in sources.items():
        if ":PATH" in source and source not in own:
            raise UsageError(
                f"the images of '{name}' are not in the bundle; give your copy with "
                f"--dataset '{name}={source.partition(':')[0]}:...'"
            )
    update: dict[str, Any] = {
        "data_root": data_root,
        "out": out,
    }
    # A bundle is not to be trusted with where code comes from.
    update["plugins_dir"] = inside / "plugins" if (inside / "plugins").is_dir() else None
    for file in (file for key in TEXT_FILES for file in getattr(spec, key).values()):
        if not file.resolve().is_relative_to(inside.resolve()):
            raise UsageError(f"the bundle's suite names a file outside of it: {file}")
    named = spec.with_sources({d: own.get(d, d) for d in spec.datasets})
    return named.model_copy(update=update)
