"""Files over HTTP: broken off and gone on with, checked, and every trouble told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fetching.server import Site, serving
from vipbench.fetching import FetchError, WebFile
from vipbench.fetching.download import AGAIN, mismatch

CONTENT = bytes(range(256)) * 4096


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        found.files["/x.bin"] = CONTENT
        yield found


def wanted(site: Site, folder: Path, digest: str = "") -> WebFile:
    return WebFile(
        f"{site.url}/x.bin", folder / "data" / "x.bin", digest or md5(CONTENT), hint="By hand."
    )


def test_a_broken_download_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    file, half = wanted(site, tmp_path), len(CONTENT) // 2
    site.stop_after = half
    with pytest.raises(FetchError, match=f"after 524.3 kB; {AGAIN}. By hand."):
        file.fetch()
    assert file.find() is None
    part = file.path.with_name("x.bin.part")
    assert part.stat().st_size == half
    site.stop_after, site.down = None, False
    site.asked.clear()
    seen: list[tuple[int, int | None]] = []
    assert file.fetch(lambda done, total: seen.append((done, total))) == file.path
    assert site.asked == [("GET", "/x.bin", f"bytes={half}-")]
    assert file.path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen[0][0] > half
    assert not part.exists()
    # What is there is not fetched again.
    site.down = True
    assert file.fetch() == file.path


@pytest.mark.parametrize("begun", [b"", b"another file's beginning", CONTENT, CONTENT + b"more"])
@pytest.mark.parametrize("ignore_range", [False, True])
def test_whatever_was_left_the_file_comes_whole(
    site: Site, tmp_path: Path, begun: bytes, ignore_range: bool
) -> None:
    file, site.ignore_range = wanted(site, tmp_path), ignore_range
    file.path.parent.mkdir()
    file.path.with_name("x.bin.part").write_bytes(begun)
    assert file.fetch().read_bytes() == CONTENT
    assert [p.name for p in file.path.parent.iterdir()] == ["x.bin"]


def test_a_wrong_file_is_not_kept_and_a_damaged_one_is_replaced(site: Site, tmp_path: Path) -> None:
    file = wanted(site, tmp_path)
    site.files["/x.bin"] = b"<html>not found</html>"
    with pytest.raises(FetchError, match=r"MD5 .*By hand"):
        file.fetch()
    assert list(file.path.parent.iterdir()) == []
    site.files["/x.bin"] = CONTENT
    file.fetch()
    file.path.write_bytes(CONTENT[:-1] + b"!")
    assert "its MD5 is" in file.damage()
    file.fetch()
    assert file.path.read_bytes() == CONTENT
    assert file.damage() == ""


@pytest.mark.parametrize(
    ("status", "output"),
    [
        (404, r"x\.bin .*404"),
        (403, r"403"),
        (408, r"408"),
        (425, r"425"),
        (429, r"429"),
        (500, r"500"),
        (503, r"503"),
    ],
)
def test_what_a_server_says(site: Site, tmp_path: Path, status: int, output: str) -> None:
    site.status["/x.bin"] = status
    with pytest.raises(FetchError, match=output):
        wanted(site, tmp_path).fetch()
    # A passing trouble is waited for, another not.
    assert len(site.asked) == (1 if status in (403, 404) else 3)


def test_no_connection_and_no_disk(site: Site, tmp_path: Path) -> None:
    nowhere = WebFile("http://127.0.0.1:9/x", tmp_path / "x", md5(CONTENT), hint="By hand.")
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9: .*By hand"):
        nowhere.fetch()
    (tmp_path / "data").write_text("a file")
    with pytest.raises(FetchError, match=r"data' .*(File exists|Not a directory)"):
        wanted(site, tmp_path).fetch()
    with pytest.raises(FetchError, match=r"url|address"):
        WebFile(f"file://{tmp_path}/data", tmp_path / "y", md5(b"")).fetch()


def test_one_process_at_a_time(site: Site, tmp_path: Path) -> None:
    file = wanted(site, tmp_path)
    notes: list[str] = []

    def second() -> None:
        with pytest.raises(FetchError, match=r"process.*'.*part'") as error:
            file.fetch()
        notes.append(str(error.value))

    def first(done: int, total: int | None) -> None:
        if not notes:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    assert file.fetch(first).read_bytes() == CONTENT
    assert notes


def test_a_file_elsewhere_will_do(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(CONTENT)
    file = WebFile(f"{site.url}/x.bin", tmp_path / "x.bin", md5(CONTENT), elsewhere=(other,))
    assert file.fetch() == other
    assert site.asked == []
    assert file.places() == (str(tmp_path / "x.bin"), str(other))


@given(st.binary(max_size=300))
def test_digests(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("digests") / "file"
    path.write_bytes(content)
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    sha = hashlib.sha256(content).hexdigest()
    for digest in (md5(content), f"sha256:{sha}", f"git:{blob}", ""):
        assert mismatch(path, digest) == ""
    path.write_bytes(content + b"x")
    for digest in (md5(content), f"sha256:{sha}", f"git:{blob}"):
        assert "not " in mismatch(path, digest)
