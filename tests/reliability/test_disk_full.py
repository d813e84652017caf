"""A full disk: the store is never corrupt, and the same command resumes once there is space."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability import grid
from tests.results.samples import content, scored
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import Store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def leave(disk: Path, free: int) -> None:
    """Fill the disk so that `free` bytes are left, rounded to pages."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
        file.truncate(max(0, file.tell() // 4096 * 4096 - free))


def fill(out: Path, added: int) -> None:
    """Add records until something stops it; each is kept on return."""
    with Store(out) as store:
        for i in range(added, 10_000):
            store.add(*scored(i))
            assert store.status()[scored(i)[0].key] == "ok"


def test_fifty_full_disks_and_one_store(small_disk: Path) -> None:
    rng = random.Random(1)
    out, added, full = small_disk / "out", 0, 0
    leave(small_disk, 0)
    with pytest.raises(StoreError, match=r"out.*(space|written)"):
        Store(out).close()
    (small_disk / "ballast").unlink()
    Store(out).close()
    while full < 50:
        leave(small_disk, rng.randrange(0, 40_000))
        before = added
        with pytest.raises(StoreError, match=r"out.*space"):
            fill(out, added)
        full += 1
        with Store(out, readonly=True) as store:
            keys = [r.key for r in store.records()]
        # All that was kept is there, none is half there: how far the writer came is in the file.
        added = len(keys)
        assert keys == [scored(i)[0].key for i in range(added)]
        if added > before + 5 and added > 150:
            # Else the disk would be too small for fifty.
            (out / "results.sqlite").unlink()
            added = 0
    (small_disk / "ballast").unlink()
    with Store(out) as store:
        for i in range(added, added + 5):
            store.add(*scored(i))
        assert len(content(store)) > added


def run_through(data: Path, disk: Path, points: int, seed: int) -> None:
    rows = ",".join(f"steady[tag={i},seconds=0]" for i in range(max(4, points // 2)))
    reference, out = data / "reference", disk / "out"
    status, _, err = grid.finish(grid.start(data, reference, rows, seeds="1-4"))
    assert status == 0, err
    rng, met, kept = random.Random(seed), 0, dict[str, str]()
    for _ in range(3 * points):
        if met == points:
            break
        # Enough for nothing; then for nothing or a few of the hundred cells each time.
        leave(disk, rng.randrange(8 * 1024, 56 * 1024) if met else 0)
        status, _, err = grid.finish(grid.start(data, out, rows, seeds="1-4"))
        assert "Traceback" not in err, err
        found = {r.key: r.created for r in grid.records(out) if r.ok}
        assert kept.items() <= found.items()
        kept = found
        if status == 0:
            break
        assert status == 2, err
        assert "space" in err, err
        met += 1
    assert met == points
    print(f"full at {met} points, {len(kept)} cells kept by then")
    (disk / "ballast").unlink()
    status, _, err = grid.finish(grid.start(data, out, rows, seeds="1-4"))
    assert status == 0, err
    assert grid.tables(out) == grid.tables(reference)
    assert grid.hashes(out) == grid.hashes(reference)


@pytest.mark.reliability
@pytest.mark.timeout(3000)
def test_fifty_full_disks_and_one_run(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "data").mkdir()
    run_through(grid.write_data(tmp_path / "data"), small_disk, 50, seed=1)
