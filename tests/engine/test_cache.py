"""The feature cache: what is there is right, what is wrong is known, what cannot be is no harm."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vipbench.engine.features.cache import clear, evict, open_shelf, shelves

PARTS = {"backbone": "a", "dataset": "b", "split": "train", "view": "evaluation", "versions": {}}


def fill(folder: Path, parts: dict[str, object], n: int = 5) -> torch.Tensor:
    features = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    open_shelf(parts, folder).put([(i, 0) for i in range(n)], features)
    return features


def test_kept_for_the_next_run(tmp_path: Path) -> None:
    features = fill(tmp_path, PARTS)
    found = open_shelf(PARTS, tmp_path).get([(4, 0), (0, 0), (9, 0), (0, 1)])
    assert list(found) == [(4, 0), (0, 0)]
    assert torch.equal(found[4, 0], features[4])


@pytest.mark.parametrize("part", PARTS)
def test_another_part_is_another_shelf(tmp_path: Path, part: str) -> None:
    fill(tmp_path, PARTS)
    changed = PARTS | {part: "other"}
    assert not open_shelf(changed, tmp_path).get([(0, 0)])


@given(data=st.data())
def test_a_damaged_block_is_never_used(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    features = fill(folder, PARTS)
    [block] = folder.rglob("*.safetensors")
    content = bytearray(block.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    block.write_bytes(content)
    shelf = open_shelf(PARTS, folder)
    assert not shelf.get([(0, 0)])
    assert "damaged" in shelf.problems[0]
    # Encoded again, it is there again.
    shelf.put([(0, 0)], features[:1])
    assert torch.equal(open_shelf(PARTS, folder).get([(0, 0)])[0, 0], features[0])


def test_a_pipe_in_place_of_a_block_keeps_nobody_waiting(tmp_path: Path) -> None:
    features = fill(tmp_path, PARTS)
    [block] = tmp_path.rglob("*.safetensors")
    block.unlink()
    os.mkfifo(block)
    shelf = open_shelf(PARTS, tmp_path)
    assert not shelf.get([(0, 0)])
    assert str(block) in shelf.problems[0]
    shelf.put([(0, 0)], features[:1])
    assert torch.equal(shelf.get([(0, 0)])[0, 0], features[0])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    shelf = open_shelf(PARTS, tmp_path / "file")
    shelf.put([(0, 0)], torch.ones(1, 4))
    assert "written" in shelf.problems[0]
    assert torch.equal(shelf.get([(0, 0)])[0, 0], torch.ones(4))


def _fill_many(folder: Path, start: int) -> None:
    shelf = open_shelf(PARTS, folder)
    for i in range(start, start + 40):
        shelf.put([(i, 0)], torch.full((1, 4), float(i)))


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_fill_many, args=(tmp_path, s)) for s in (0, 20)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    shelf = open_shelf(PARTS, tmp_path)
    found = shelf.get([(i, 0) for i in range(60)])
    assert not shelf.problems
    assert {i: float(v[0]) for (i, _), v in found.items()} == {i: float(i) for i in range(60)}


def test_eviction_takes_the_longest_unused(tmp_path: Path) -> None:
    for i in range(3):
        fill(tmp_path, PARTS | {"backbone": str(i)})
        [mark] = [m for m in tmp_path.rglob("shelf.json")
                  if json.loads(m.read_text())["backbone"] == str(i)]  # fmt: skip
        os.utime(mark, (i, i))
    size = shelves(tmp_path)[0].bytes
    assert evict(2 * size, tmp_path) == size
    assert [s.parts["backbone"] for s in shelves(tmp_path)] == ["1", "2"]
    clear(tmp_path)
    assert shelves(tmp_path) == []


def test_a_cache_that_a_group_shares_keeps_its_group_and_rights(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files to a group that one is not in needs root")
    group = 54321
    os.chown(tmp_path, -1, group)
    tmp_path.chmod(0o2770)
    before = os.umask(0o077)
    try:
        fill(tmp_path, PARTS)
        with open_shelf(PARTS, tmp_path).filling():
            pass
    finally:
        os.umask(before)
    made = [*tmp_path.rglob("*")]
    assert len(made) == 5  # two folders, a block, the mark, the lock
    for path in made:
        state = path.stat()
        assert state.st_gid == group
        assert state.st_mode & 0o7077 == (0o2070 if path.is_dir() else 0o060), path
    # A cache of one's own stays so.
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        fill(own, PARTS)
    finally:
        os.umask(before)
    assert not any(path.stat().st_mode & 0o020 for path in own.rglob("*"))


def test_what_cannot_be_read_is_a_miss_with_a_note(tmp_path: Path) -> None:
    features = fill(tmp_path, PARTS)
    [block] = tmp_path.rglob("*.safetensors")
    # Root reads everything but what is no file.
    block.rename(tmp_path / "block")
    block.mkdir()
    shelf = open_shelf(PARTS, tmp_path)
    assert not shelf.get([(0, 0)])
    [note] = shelf.problems
    assert str(block) in note
    folder = block.parent
    folder.rename(tmp_path / "shelf")
    folder.touch()
    shelf = open_shelf(PARTS, tmp_path)
    assert not shelf.get([(0, 0)])
    [note] = shelf.problems
    assert str(folder) in note
    folder.unlink()
    (tmp_path / "shelf").rename(folder)
    block.rmdir()
    (tmp_path / "block").rename(block)
    assert torch.equal(open_shelf(PARTS, tmp_path).get([(0, 0)])[0, 0], features[0])
