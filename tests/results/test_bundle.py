"""A bundle from anybody: read whole, or refused before anything is written."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipbench.errors import UsageError
from vipbench.results.records.record import sha256
from vipbench.results.sharing.bundle import read_bundle, unpack_bundle, write_bundle

FILES = {
    "suite.yaml": b"seeds: [1]\n",
    "records.jsonl": b"",
    "plugins/toy.py": b"x = 1\n",
    "plugins/helpers/deep.py": b"y = 2\n",
    "symptoms/dataset-1.json": b"{}",
}


def zipped(files: dict[str, bytes], change: Callable[[zipfile.ZipFile], None] = id) -> bytes:  # type: ignore[assignment]
    named = {"bundle_schema": 1, "files": {n: sha256(d) for n, d in files.items()}}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(named))
        for name, data in files.items():
            archive.writestr(name, data)
        change(archive)
    return out.getvalue()


def test_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    write_bundle(path, FILES, {"title": "t"})
    first = path.read_bytes()
    manifest, files = read_bundle(path)
    assert files == FILES
    assert manifest["title"] == "t"
    unpack_bundle(files, tmp_path / "out")
    assert (tmp_path / "out" / "plugins" / "helpers" / "deep.py").read_bytes() == b"y = 2\n"
    with pytest.raises(FileExistsError):
        unpack_bundle(files, tmp_path / "out")
    # The same content is the same file.
    write_bundle(path, FILES, {"title": "t"})
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py",
        "plugins/../../evil.py",
        "/etc/evil.py",
        "plugins//evil.py",
        "plugins\\..\\evil.py",
        "C:evil.py",
        "plugins/.hidden.py",
        "plugins/evil.so",
        "plugins/",
        "suite.yaml/x",
        "symptoms/a b.json",
        "plugins/a.py\n",
        "plugins/а.py",
    ],
)
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(zipped({**FILES, name: b"evil"}))
    with pytest.raises(UsageError, match=f"{re.escape(repr(name))}|damaged"):
        read_bundle(path)
    with pytest.raises(UsageError, match=re.escape(name)):
        write_bundle(path, {name: b""}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["b.zip"]


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("plugins/link.py")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def twice(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("plugins/toy.py", "x = 2")


def unlisted(archive: zipfile.ZipFile) -> None:
    archive.writestr("plugins/other.py", "x = 2")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (link, r"'plugins/link\.py'"),
        (twice, "twice"),
        (unlisted, r"'plugins/other\.py'"),
    ],
)
def test_links_and_stowaways_are_refused(
    change: Callable[[zipfile.ZipFile], None], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(zipped(FILES, change))
    with pytest.raises(UsageError, match=expected):
        read_bundle(path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "bundle"),
        (b"PK\x03\x04", "bundle"),
        (zipped(FILES)[:-40], "bundle"),
        (zipped({"suite.yaml": b""}), "suite.yaml or records.jsonl"),
    ],
)
def test_what_is_no_bundle_is_reported(data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=expected):
        read_bundle(path)


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ("[]", "vipbench"),
        ("{", "vipbench"),
        ('{"bundle_schema": "1", "files": {}}', "vipbench"),
        ('{"bundle_schema": 2, "files": {}}', "upgrade"),
        ('{"bundle_schema": 1, "files": {"gone.py": "00"}}', r"'suite\.yaml'"),
    ],
)
def test_a_wrong_manifest_is_reported(manifest: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", manifest)
        archive.writestr("suite.yaml", "")
    with pytest.raises(UsageError, match=expected):
        read_bundle(path)


@settings(max_examples=300)
@given(st.data())
def test_a_flipped_byte_never_gets_in(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "b.zip"
    whole = bytearray(zipped(FILES))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        _, files = read_bundle(path)
    except UsageError:
        return
    assert files == FILES  # a byte that says nothing, such as a time
