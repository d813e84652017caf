"""Files written into a folder never go through a link that somebody left there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cli
from tests.fetching.server import serving
from tests.results.samples import filled, scored
from vipbench.engine.cluster import sealed
from vipbench.engine.cluster.executors import work
from vipbench.engine.cluster.folder import Part, Parts
from vipbench.engine.cluster.results import PartResults
from vipbench.engine.given.data import write_data
from vipbench.engine.method_classes import _save
from vipbench.engine.tracking import Tracking, _Tracker, folder_name
from vipbench.engine.workers.driver import Observer
from vipbench.errors import UsageError
from vipbench.fetching import FetchError, WebFile
from vipbench.files import write
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import FILE, LOCK, Store
from vipbench.runspec.run import RunSpec

ENDS = ("", ".part", ".new", ".new-journal", ".tmp")
COMMANDS = (
    ("export", "OUT", "-o", "OUT/e.csv"),
    ("export", "OUT", "-o", "OUT/e.jsonl"),
    ("export", "OUT", "-o", "OUT/e.parquet"),
    ("plot", "OUT", "--kind", "bars", "--aggregate", "none", "-o", "OUT/p.svg"),
    ("leaderboard", "OUT", "-o", "OUT/board"),
)


def trap(folder: Path, outside: Path, names: set[str]) -> None:
    """Links of these names, and of what a writer may call them for a while, to files outside."""
    outside.mkdir()
    for name in sorted(names):
        path = Path(name)
        forms = {f"{name}{end}" for end in ENDS} | {str(path.with_suffix(".part"))}
        for form in forms:
            link = folder / form
            if not link.exists() and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                target = outside / form.replace("/", "%")
                target.write_text("mine")
                link.symlink_to(target)


def unharmed(outside: Path) -> bool:
    return all(file.read_text() == "mine" for file in outside.iterdir())


def test_a_run_and_its_tables(cli: Cli, tmp_path: Path) -> None:
    run = ("run", "--datasets", "synthderm", "--backbones", "tiny-clip", "--methods", "zero-shot")
    run += ("--views", "none", "--out")
    assert cli(*run, tmp_path / "clean").returncode == 0
    made = {file.name for file in (tmp_path / "clean").iterdir()}
    assert {"suite.yaml", "table.md", "table.tex", "results.csv", FILE, LOCK} <= made
    folder, outside = tmp_path / "out", tmp_path / "outside"
    folder.mkdir()
    (folder / FILE).touch()
    (folder / LOCK).touch()
    trap(folder, outside, made)
    (folder / FILE).unlink()
    done = cli(*run, folder)
    assert done.returncode == 0, done.stderr
    assert unharmed(outside)
    assert not any((folder / name).is_symlink() for name in made)
    assert (folder / "table.md").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_what_reads_results_writes_beside_no_link(
    cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder, outside = tmp_path / "out", tmp_path / "outside"
    filled(folder)
    name = words[-1].removeprefix("OUT/")
    trap(folder, outside, {"board/index.html" if name == "board" else name})
    if name == "board":
        (folder / "board/index.html").unlink()  # what is no leaderboard is not replaced
    done = cli(*(word.replace("OUT", str(folder)) for word in words))
    assert done.returncode == 0, done.stderr
    assert unharmed(outside)
    assert not (folder / name).is_symlink()


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("name", [LOCK, FILE, f"{FILE}-journal", f"{FILE}-wal"])
def test_a_store_is_not_written_through_a_link(tmp_path: Path, name: str, make: object) -> None:
    folder, theirs = tmp_path / "out", tmp_path / "theirs"
    filled(folder)
    outside = tmp_path / "outside"
    if name == FILE:
        outside = filled(theirs)
    else:
        outside.write_text("mine")
    before = outside.read_bytes()
    (folder / name).unlink(missing_ok=True)
    make(folder / name, outside)  # type: ignore[operator]
    with pytest.raises(StoreError, match=name):
        Store(folder)
    assert outside.read_bytes() == before
    if name == FILE:
        with Store(folder, readonly=True) as store:
            assert store.records()


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to, None])
def test_a_download_goes_on_with_a_plain_file_alone(tmp_path: Path, make: object) -> None:
    outside, part = tmp_path / "outside", tmp_path / "data" / "x.bin.part"
    outside.write_text("mine")
    part.parent.mkdir()
    if make is None:
        os.mkfifo(part)
    else:
        make(part, outside)  # type: ignore[operator]
    with serving() as site:
        site.files["/x.bin"] = b"new"
        with pytest.raises(FetchError, match=r"x\.bin\.part"):
            WebFile(f"{site.url}/x.bin", tmp_path / "data" / "x.bin", "", hint="").fetch()
    assert outside.read_text() == "mine"


def test_a_special_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match=name):
            write(tmp_path / name, "text")
    assert {file.name for file in tmp_path.iterdir()} == {"pipe", "link"}


def test_the_lock_file_removed_lets_nobody_do_a_cell_twice(tmp_path: Path) -> None:
    """Two writers, each of its own process, of whom the second came by removing the lock."""
    record, predictions = scored(77)
    store = Store(tmp_path)
    (tmp_path / LOCK).unlink()
    store.add(*scored(78))  # it takes the lock anew
    assert (tmp_path / LOCK).exists()
    (tmp_path / LOCK).unlink()
    other = (
        "import sys; from tests.results.samples import scored; "
        "from vipbench.results.store.store import Store; "
        "store = Store(sys.argv[1]); store.add(*scored(77)); "
        "print('added', flush=True); sys.stdin.read(); store.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", other, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "added\n"
        with pytest.raises(StoreError, match=rf"{LOCK} .*{process.pid}"):
            store.add(*scored(79))
        process.communicate("")
    # Now that the other has ended the lock is to be had again, and its cell is known.
    with pytest.raises(StoreError, match=record.key):
        store.add(record, predictions)
    store.add(*scored(79))
    assert len(store.records()) == 3
    assert not store.submissions()
    store.close()


def test_the_parts_of_a_run_are_written_through_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("kept")
    parts = Parts(tmp_path / "out")
    parts.folder.mkdir(parents=True)
    parts.file(0, ".log").symlink_to(victim)
    with pytest.raises(FileExistsError, match=r"000\.log"):
        work(str(parts.out), 0)
    parts.file(0, "").symlink_to(outside)
    with pytest.raises(FileExistsError, match="link"):
        PartResults(parts, Part(0, 0, 1, without_support=False), print)
    parts.file(0, ".plan").symlink_to(victim)
    sealed.write(parts.file(0, ".plan"), b"new")
    assert victim.read_text() == "kept"
    assert [*outside.iterdir()] == [victim]


def test_a_small_file_of_a_part_that_becomes_large_is_refused(tmp_path: Path) -> None:
    sealed.write(tmp_path / "0.done", bytes(100 << 20), {})
    with pytest.raises(sealed.DamagedError, match=r"0\.done"):
        sealed.read(tmp_path / "0.done")


@pytest.mark.parametrize("link", ["data", "data/toy", "plugins", "plugins/own_files"])
def test_data_and_classes_from_python_are_written_through_no_link(
    tmp_path: Path, link: str
) -> None:
    """Whoever made the results folder may have put a link where vipbench writes into it."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    (out / link).parent.mkdir(parents=True)
    outside.mkdir()
    (out / link).symlink_to(outside)
    rows = [(np.zeros((8, 8), np.uint8), "ab"[i % 2], "train") for i in range(4)]
    code = {"own.py": b"x", "own_files/other.py": b"x"}
    given = link.startswith("data")
    with pytest.raises(FileExistsError, match=link):
        write_data("toy", rows, out) if given else _save(out / "plugins", code, [])
    assert not [*outside.iterdir()]


def test_the_parts_of_a_strangers_run_are_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "parts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"out/parts .*link"):
        Parts(tmp_path / "out").run()


@pytest.mark.parametrize("link", ["tracking", "tracking/own"])
def test_trackers_write_and_remove_through_no_link(tmp_path: Path, link: str) -> None:
    out, outside, (record, _) = tmp_path / "out", tmp_path / "outside", scored(1)
    kept = outside / "own" / folder_name(record.cell, record.key) / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(outside / link.removeprefix("tracking").lstrip("/"))
    notes: list[str] = []
    observer = Observer()
    observer.note = notes.append  # type: ignore[method-assign]
    tracking = Tracking(RunSpec.parse({"out": out}), observer)
    tracking._trackers = [_Tracker("own", out / "tracking" / "own", lambda *given: None)]
    tracking._write([record])
    assert re.search(f"link.*{re.escape(str(out / link))}", notes[0])
    assert kept.exists()
