"""The memory that a run may take: the machine's, or that of the job around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vipbench.engine import memory

GIB = 1024**3


def group(root: Path, path: str, **files: object) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def own(root: Path, *lines: str, available: int = 64 * GIB) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
    # Nearly all memory holds files.
    (root / "proc/meminfo").write_text(f"MemFree: 9 kB\nMemAvailable: {available // 1024} kB\n")
    return root


def test_files_that_fill_the_memory_of_a_machine_are_no_use_of_it(tmp_path: Path) -> None:
    root = own(tmp_path, "0::/job", available=2 * GIB)
    assert memory.free(root) == 2 * GIB
    group(root, "job", memory__max=4 * GIB, memory__current=GIB)
    assert memory.free(root) == 2 * GIB
    group(root, "job", memory__current=3 * GIB)
    assert memory.free(root) == GIB


def test_a_machine_without_groups_offers_all_that_it_has(tmp_path: Path) -> None:
    assert memory.whole(tmp_path) > memory.free(tmp_path) > 0
    assert memory.whole() > 0


@pytest.mark.parametrize("path", ["slurm/job_7/step_batch", "job_7"])
def test_the_limit_of_any_group_around_counts(tmp_path: Path, path: str) -> None:
    root = own(tmp_path, f"0::/{path}")
    group(root, path, memory__max="max", memory__current=GIB)
    top = path.rpartition("/")[0] or path
    stat = f"anon 1\ninactive_file {GIB // 4}"
    group(root, top, memory__max=GIB, memory__current=GIB // 2, memory__stat=stat)
    assert memory.whole(root) == GIB
    # What the system keeps of files is given up when it is needed.
    assert memory.free(root) == GIB // 2 + GIB // 4


def test_the_older_groups(tmp_path: Path) -> None:
    root = own(tmp_path, "5:cpu,cpuacct:/job", "4:memory:/job", "1:name=systemd:/job")
    limits = {"memory__limit_in_bytes": GIB, "memory__usage_in_bytes": 2 * GIB}
    group(root, "memory/job", **limits)
    assert (memory.whole(root), memory.free(root)) == (GIB, 0)
    # Inside a container its own group is the root.
    (root / "proc/self/cgroup").write_text("4:memory:/somewhere/else\n")
    group(root, "memory", **limits)
    assert memory.whole(root) == GIB
