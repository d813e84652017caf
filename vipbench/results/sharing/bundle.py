"""A bundle: one zip with what a reproduction needs. Reading trusts nothing."""

from __future__ import annotations

import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipbench.errors import UsageError
from vipbench.files import open_regular, replacing, write
from vipbench.results.records.record import sha256
from vipbench.results.sharing.limits import MOST_BYTES, MOST_ROW, Budget

BUNDLE_SCHEMA = 1
MANIFEST = "manifest.json"
RECORDS = "records.jsonl"

# What a bundle may hold. No name leaves the folder, hides, or depends on the system.
_NAMES = re.compile(
    r"manifest\.json|suite\.yaml|records\.jsonl|splits\.json|prompts\.json|README\.md"
    r"|plugins/(?:[A-Za-z_]\w{0,99}/){0,5}[A-Za-z_]\w{0,99}\.py"
    r"|(symptoms|descriptions|templates)/[A-Za-z0-9_-]{1,100}\.json"
    r"|parameters/[0-9a-f]{64}\.safetensors",
    re.ASCII,
)

MOST_FILES = 100_000

# What Python's own reader says of a file that is no zip, or was altered.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
)

# Every file carries this time, so that the same content gives the same zip.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_bundle(path: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Write `files` with a manifest that holds the digest of each; whole or not at all. Raises
    UsageError for a name that no reader would take, OSError."""
    for name in files:
        if not _NAMES.fullmatch(name) or name == MANIFEST:
            raise UsageError(
                f"'{name}' cannot be in a bundle: plugins' files are Python modules, at most "
                "five folders deep"
            )
    sizes = {name: len(data) for name, data in files.items()}
    total, largest = sum(sizes.values()), max((*_limited(sizes).values(), 0))
    if total > MOST_BYTES or largest > MOST_ROW:
        raise UsageError(
            f"the bundle would have {total:,} bytes and a file of {largest:,}, more than is read "
            f"(limits: {MOST_BYTES:,} and {MOST_ROW:,}); leave parameters out, or make several"
        )
    contents = {
        "bundle_schema": BUNDLE_SCHEMA,
        **manifest,
        "files": {name: sha256(data) for name, data in sorted(files.items())},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(contents, indent=2, ensure_ascii=True) + "\n"
    with replacing(path, "wb") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [(MANIFEST, text.encode()), *sorted(files.items())]:
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def read_bundle(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the files, each against its digest; nothing is written. Raises UsageError
    for anything that a bundle does not hold: other names, links, files that claim one size and
    have another, more than `limits` allows."""
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                found = _read_all(archive, path)
        except UsageError:
            raise
        except _DAMAGE as error:
            raise UsageError(f"'{path}' is not a bundle, or is damaged: {error}") from None
    manifest = _manifest(path, found)
    files = manifest["files"]
    for name, data in found.items():
        if files.get(name) != sha256(data):
            raise UsageError(f"'{path}': '{name}' differs from the manifest; get the bundle again")
    missing = files.keys() - found.keys()
    if missing or "suite.yaml" not in found or "records.jsonl" not in found:
        lacks = sorted(missing) or ["suite.yaml or records.jsonl"]
        raise UsageError(f"'{path}' lacks {', '.join(lacks[:3])}; get the bundle again")
    return manifest, found


def unpack_bundle(files: Mapping[str, bytes], folder: Path) -> None:
    """Write a read bundle's files into a new folder. Raises FileExistsError, OSError."""
    folder.mkdir(parents=True, exist_ok=False)
    for name, data in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, data)


def _read_all(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    infos = archive.infolist()
    if len(infos) > MOST_FILES:
        raise UsageError(f"'{path}' holds {len(infos):,} files, more than a bundle may have")
    budget = Budget(path)
    budget.announced(sum(info.file_size for info in infos))
    for name, size in _limited({info.filename: info.file_size for info in infos}).items():
        if size > MOST_ROW:
            raise UsageError(
                f"'{path}': {name!r} has {size:,} bytes, over the limit of {MOST_ROW:,}; nothing "
                "was read"
            )
    found: dict[str, bytes] = {}
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not _NAMES.fullmatch(info.filename) or kind not in (0, stat.S_IFREG):
            raise UsageError(
                f"'{path}' holds {info.filename!r}, which does not belong in a bundle; nothing "
                f"was unpacked"
            )
        plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if info.filename in found or info.flag_bits & 1 or not plain:
            raise UsageError(
                f"'{path}' holds {info.filename!r} twice, encrypted or compressed in an unknown "
                f"way; nothing was read"
            )
        # Never more than was announced, whatever the compressed bytes come to.
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise UsageError(f"'{path}': {info.filename!r} does not have the size that it states")
        found[info.filename] = data
    return found


def _limited(sizes: Mapping[str, int]) -> dict[str, int]:
    """Of the files that are read at once, their sizes; the others are read in parts or not."""
    return {name: size for name, size in sizes.items() if name not in (RECORDS, "splits.json")}


def _manifest(path: Path, found: dict[str, bytes]) -> dict[str, Any]:
    if MANIFEST not in found:
        raise UsageError(f"'{path}' has no {MANIFEST}: it is not a bundle of vipbench")
    try:
        manifest = Budget(path).json(found.pop(MANIFEST).decode())
        schema, files = manifest["bundle_schema"], manifest["files"]
        well_formed = type(schema) is int and isinstance(files, dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        well_formed = False
    if not well_formed:
        raise UsageError(f"'{path}': {MANIFEST} is not what vipbench writes")
    if schema > BUNDLE_SCHEMA:
        raise UsageError(
            f"'{path}' has bundle schema {schema}, this vipbench reads up to {BUNDLE_SCHEMA}: "
            "upgrade vipbench"
        )
    result: dict[str, Any] = manifest
    return result


def json_bytes(value: Any) -> bytes:
    """`value` as a JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=True) + "\n").encode()


def as_dict(value: Any) -> dict[str, Any]:
    """`value`, or an empty dict if it is none."""
    return value if isinstance(value, dict) else {}
