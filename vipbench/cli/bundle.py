"""`vipbench export --bundle` and `vipbench reproduce`: a run in one file, and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vipbench import __version__
from vipbench.cli import FAILED, OK
from vipbench.cli.text import clean, plural
from vipbench.engine.rerun import compare
from vipbench.errors import UsageError
from vipbench.results.bundle import read_bundle, unpack_bundle, write_bundle
from vipbench.results.exchange import export_rows, read_rows
from vipbench.results.jsonvalues import dump
from vipbench.results.packing import sha256
from vipbench.results.predictions import Predictions
from vipbench.results.privacy import Pseudonyms, public_source, scrub, withheld
from vipbench.results.record import Record
from vipbench.results.store import Store
from vipbench.spec import SUITE_NAME, TEXT_FILES, RunSpec

RECORDS = "records.jsonl"
READ_ME = """# A run of vipbench, to be made again

    vipbench reproduce THIS.zip --out results

It asks before it runs the plugins in `plugins/`. A dataset whose source in `manifest.json` ends in
PATH is not in here: give your copy with `--dataset NAME=SOURCE`; its fingerprint tells whether it
is the same. `splits.json` holds the images of each split in order and the places of those drawn.
"""


def bundle_command(
    folder: Path, out: Path, include_paths: bool, parameters: bool, patient_data: bool
) -> int:
    """Write the folder's last run as a bundle. Raises UsageError, StoreError, OSError."""
    suite_file = folder / SUITE_NAME
    if not suite_file.exists():
        raise UsageError(f"{folder} has no {SUITE_NAME}: only a run's own folder makes a bundle")
    from vipbench.engine.describing import describe

    spec = RunSpec.from_yaml(suite_file)
    names = None if include_paths else Pseudonyms.of_folder(folder)
    told = describe(spec, names)
    suite, renamed, files = _public_suite(spec, told.prompts, told.datasets, told.files)
    with Store(folder, readonly=True) as store:
        wanted = {cell.key or "" for cell in store.plan(latest=True)}
        rows = [r for r in export_rows(store, names) if r["key"] in wanted]
        shareable = {d["name"] for d in told.datasets.values() if d["sharing"] == "allowed"}
        asked = wanted if parameters or patient_data else set()
        kept, held, left = _parameters(store, asked, shareable, patient_data)
        versions = _versions(store, wanted)
    files |= {
        "suite.yaml": suite.to_yaml().encode(),
        RECORDS: "".join(dump(row) + "\n" for row in rows).encode(),
        "splits.json": _json(told.splits),
        "prompts.json": _json(told.prompts),
        "README.md": READ_ME.encode(),
        **kept,
    }
    manifest = {
        "vipbench": __version__,
        "title": scrub(spec.title),
        "contains_patient_data": held,
        "pseudonyms": names is not None,
        "records": len(rows),
        "datasets": {
            d["name"]: {"source": renamed[source], **{k: v for k, v in d.items() if k != "name"}}
            for source, d in told.datasets.items()
        },
        "requires": told.requires,
        "versions": versions,
    }
    write_bundle(out, files, manifest)
    code = sum(name.startswith("plugins/") for name in files)
    print(
        f"{out}: {plural(len(rows), 'record')}, {plural(code, 'plugin file')}, "
        f"{out.stat().st_size / 1e6:.1f} MB"
    )
    if held:
        print("note: contains-patient-data: it holds parameters with features of single images")
    if left:
        print(
            f"note: the learned parameters of {plural(left, 'cell')} may hold features of single "
            "images and are left out; --patient-data puts them in"
        )
    return OK


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
    pairs = _records(files[RECORDS])
    inside = out / "bundle"
    try:
        unpack_bundle(files, inside)
    except FileExistsError:
        there = {name: inside / name for name in files}
        if any(not p.is_file() or p.read_bytes() != files[n] for n, p in there.items()):
            raise UsageError(
                f"{inside} holds another bundle, or a part of one; give another --out"
            ) from None
    _tell(bundle, manifest, files)
    spec = _spec(inside, out, data_root, datasets, manifest)
    _ask(inside, files, yes)
    from vipbench.cli.run import run_command
    from vipbench.cli.verify import show_reruns

    status = run_command(spec)
    if status not in (OK, FAILED):
        return status
    wrong = show_reruns(compare(pairs, out, tolerance), tolerance, "all of the bundle")
    print("reproduced" if not wrong else f"{plural(wrong, 'cell')} not reproduced")
    return FAILED if wrong else OK


def _public_suite(
    spec: RunSpec,
    prompts: Mapping[str, Any],
    datasets: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Path],
) -> tuple[RunSpec, dict[str, str], dict[str, bytes]]:
    """The suite without paths, its datasets' sources by their old ones, and the files it needs."""
    files = {f"plugins/{name}": path.read_bytes() for name, path in sources.items()}
    renamed: dict[str, str] = {}
    for source in spec.datasets:
        public = public_source(source, spec.data_root)
        count = sum(other.startswith(public) for other in renamed.values())
        renamed[source] = f"{public}-{count + 1}" if public != source and count else public
    texts: dict[str, dict[str, Path]] = {key: {} for key in TEXT_FILES}
    for number, source in enumerate(spec.datasets, 1):
        name = datasets[source]["name"]
        places = {source, name, "*", Path(source.partition(":")[2]).name}
        # A file of --symptoms may say that it holds descriptions.
        if not any(places & getattr(spec, key).keys() for key in TEXT_FILES):
            continue
        for key in TEXT_FILES:
            if prompts[name][key] is not None:
                file = f"{key}/dataset-{number}.json"
                files[file] = _json(prompts[name][key])
                texts[key][renamed[source]] = Path(file)
    update: dict[str, Any] = {
        "datasets": tuple(renamed.values()),
        "backbones": tuple(_public_backbone(b) for b in spec.backbones),
        **texts,
        "data_root": None,
        "plugins_dir": Path("plugins") if sources else None,
        "out": Path("results"),
        "title": scrub(spec.title),
        "device": "auto",
    }
    return spec.model_copy(update=update), renamed, files


def _public_backbone(source: str) -> str:
    """A local checkpoint comes as NAME@PATH."""
    name, at, _ = source.partition("@")
    if at:
        return f"{name}@PATH"
    argument = source.partition(":")[2]
    local = argument.startswith(("/", "~", ".")) or (argument and Path(argument).exists())
    return public_source(source, None) if local else source


def _parameters(
    store: Store, keys: set[str], shareable: set[str], patient_data: bool
) -> tuple[dict[str, bytes], bool, int]:
    """The files, whether they may hold features of single images, how many were left out as they
    may."""
    files: dict[str, bytes] = {}
    held, left = False, 0
    for record in store.records(history=False) if keys else ():
        private = withheld(record, shareable)
        data = store.parameters(record.key) if record.key in keys else None
        if data is not None and private and not patient_data:
            left += 1
        elif data is not None:
            files[f"parameters/{record.key}.safetensors"] = data
            held = held or private
    return files, held, left


def _versions(store: Store, keys: set[str]) -> dict[str, list[str]]:
    from vipbench.results.settings import versions

    found: dict[str, list[str]] = {}
    for record in store.records(history=False):
        if record.key in keys:
            for name, value in scrub(versions(record)).items():
                values = found.setdefault(name, [])
                if str(value) not in values:
                    values.append(str(value))
    return found


def _records(data: bytes) -> list[tuple[Record, Predictions | None]]:
    try:
        rows = [json.loads(line) for line in data.decode().splitlines()]
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the bundle's {RECORDS} cannot be read: {error}") from None
    return [pair for pair in read_rows(rows, f"the bundle's {RECORDS}") if pair[0].ok]


def _tell(bundle: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    print(f"{bundle}: {clean(str(manifest.get('title') or 'a run'))}")
    print(f"  made with vipbench {clean(str(manifest.get('vipbench')))}, this is {__version__}")
    for name, version in _dict(manifest.get("requires")).items():
        print(f"  needs the installed plugin {clean(str(name))} {clean(str(version))}")
    if manifest.get("contains_patient_data"):
        print("  contains-patient-data: keep it as you keep the images")
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
        name: told["source"]
        for name, told in _dict(manifest.get("datasets")).items()
        if isinstance(told, dict) and isinstance(told.get("source"), str)
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
        "datasets": tuple(own.get(d, d) for d in spec.datasets),
        "data_root": data_root,
        "out": out,
    }
    for key in TEXT_FILES:
        update[key] = {own.get(d, d): file for d, file in getattr(spec, key).items()}
    # A bundle is not to be trusted with where code comes from.
    update["plugins_dir"] = inside / "plugins" if (inside / "plugins").is_dir() else None
    for file in (file for key in TEXT_FILES for file in getattr(spec, key).values()):
        if not file.resolve().is_relative_to(inside.resolve()):
            raise UsageError(f"the bundle's suite names a file outside of it: {file}")
    return spec.model_copy(update=update)


def _ask(inside: Path, files: Mapping[str, bytes], yes: bool) -> None:
    if yes or not any(name.startswith("plugins/") for name in files):
        return
    question = f"Its plugins' code lies in {inside / 'plugins'}. Run it?"
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Read it, then give --yes; nothing was run")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was run")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=True) + "\n").encode()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
