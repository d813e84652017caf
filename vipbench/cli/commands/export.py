"""`vipbench export`: write records, or a bundle of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipbench import __version__
from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError
from vipbench.results.records.record import dump
from vipbench.results.sharing.bundle import RECORDS, json_bytes, write_bundle
from vipbench.results.sharing.files import format_of, write_rows
from vipbench.results.sharing.privacy import (
    Pseudonyms,
    public_backbone,
    public_source,
    scrub,
    withheld,
)
from vipbench.results.sharing.rows import export_rows
from vipbench.results.store.store import Store
from vipbench.runspec import text_sets
from vipbench.runspec.run import SUITE_NAME, TEXT_FILES, RunSpec
from vipbench.text import clean, plural

READ_ME = """# A run of vipbench, to be reproduced

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
        raise UsageError(f"{folder} has no {SUITE_NAME}: only the folder of a run can be bundled")
    from vipbench.engine.describe import describe

    spec = RunSpec.from_yaml(suite_file)
    names = None if include_paths else Pseudonyms.of_folder(folder)
    with Store(folder, readonly=True) as store:
        described = describe(spec, names, store)
        suite, renamed, files = _public_suite(
            spec, described.prompts, described.datasets, described.files
        )
        wanted = {cell.key for cell in store.plan(latest=True)}
        rows = [r for r in export_rows(store, names) if r["key"] in wanted]
        shareable = {d["name"] for d in described.datasets.values() if d["sharing"] == "allowed"}
        asked = wanted if parameters or patient_data else set()
        kept, held, left = _parameters(store, asked, shareable, patient_data)
        versions = _versions(store, wanted)
    files |= {
        "suite.yaml": suite.to_yaml().encode(),
        RECORDS: "".join(dump(row) + "\n" for row in rows).encode(),
        "splits.json": json_bytes(described.splits),
        "prompts.json": json_bytes(described.prompts),
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
            for source, d in described.datasets.items()
        },
        "requires": described.requires,
        "versions": versions,
    }
    write_bundle(out, files, manifest)
    code = sum(name.startswith("plugins/") for name in files)
    print(
        f"{out}: {plural(len(rows), 'record')}, {plural(code, 'plugin file')}, "
        f"{out.stat().st_size / 1e6:.1f} MB"
    )
    for name, why in described.absent.items():
        print(
            f"note: the data of '{name}' cannot be read ({clean(why)}); the bundle describes them "
            "by their records, without training images and support sets"
        )
    if held:
        print("note: contains-patient-data: it holds parameters with features of single images")
    if left:
        print(
            f"note: the learned parameters of {plural(left, 'cell')} may hold features of single "
            "images and are left out; --patient-data includes them"
        )
    return OK


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
        own = prompts[datasets[source]["name"]]
        given = {"": {kind: own[kind] for kind in own["from_files"]}, **own.get("sets", {})}
        for place, (label, kinds) in enumerate(given.items()):
            for kind, content in kinds.items():
                file = f"{kind}/dataset-{number}{f'-set-{place}' if label else ''}.json"
                files[file] = json_bytes(content)
                texts[kind][text_sets.key(label, renamed[source])] = Path(file)
    update: dict[str, Any] = {
        "datasets": tuple(renamed.values()),
        "backbones": tuple(public_backbone(b) for b in spec.backbones),
        **texts,
        "images": {},
        "data_root": None,
        "plugins_dir": Path("plugins") if sources else None,
        "out": Path("results"),
        "title": scrub(spec.title),
        "device": "auto",
        "executor": None,
        "track": (),
    }
    # The protocol names datasets too.
    return spec.with_sources(renamed).model_copy(update=update), renamed, files


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
    from vipbench.results.records.comparable import versions

    found: dict[str, list[str]] = {}
    for record in store.records(history=False):
        if record.key in keys:
            for name, value in scrub(versions(record)).items():
                values = found.setdefault(name, [])
                if str(value) not in values:
                    values.append(str(value))
    return found


def export_command(
    folder: Path,
    out: Path,
    form: str | None,
    include_paths: bool,
    with_scores: bool,
    superseded: bool = False,
) -> int:
    """Write a folder's records into one file; superseded: also the superseded ones. Raises
    UsageError, StoreError, OSError."""
    form = format_of(out, form)
    with Store(folder, readonly=True) as store:
        left = frozenset() if superseded else store.superseded()
        count = len(store.status().keys() - left)
        names = None if include_paths else Pseudonyms.of_folder(folder)
        write_rows(out, export_rows(store, names, with_scores, superseded), form)
    if left:
        print(
            f"note: {plural(len(left), 'superseded record')} "
            f"{'is' if len(left) == 1 else 'are'} left out; --superseded includes "
            f"{'it' if len(left) == 1 else 'them'}"
        )
    print(f"{out}: {plural(count, 'record')}, {out.stat().st_size / 1e6:.1f} MB")
    if include_paths:
        print("note: it contains the real names of images, groups and paths (--include-paths)")
    return OK
