"""Files from strangers: nothing outside the folder is read, nothing in them is run."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vipbench.api import DataError
from vipbench.backbones.loading.weights import read_weights
from vipbench.datasets.csv_manifest import CsvDataset
from vipbench.datasets.folder import FolderDataset
from vipbench.datasets.npz import NpzDataset
from vipbench.datasets.split_file import SplitFileDataset
from vipbench.errors import UsageError
from vipbench.images import ImageError

SECRET = "secret/patient.png"
HEAD = "path,label,split\n"
REST = "a/1.png,x,train\na/2.png,y,train\na/3.png,x,test\na/4.png,y,test\n"


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 9)).save(path, "PNG")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with four images and links out of it, and one image beside it."""
    root = tmp_path / "root"
    for i in range(1, 5):
        picture(root / f"a/{i}.png", i)
    picture(tmp_path / SECRET, 77)
    (root / "link.png").symlink_to(tmp_path / SECRET)
    (root / "a/dir").symlink_to(tmp_path / "secret")
    (root / "a/chain").symlink_to("dir")
    return root


def hostile(root: Path) -> list[str]:
    """Fifty paths that lead out of the folder, or nowhere."""
    out = root.parent / SECRET
    ups = ["../" * n + SECRET for n in range(1, 8)]
    ups += [f"a/../{'../' * n}{SECRET}" for n in range(1, 6)]
    ups += [f"./a/./../../{SECRET}", f"a//..//..//{SECRET}", f"a/../a/../../{SECRET}"]
    absolute = [str(out), f"//{out}", f"///{out}", f"/proc/self/root{out}", f"file://{out}"]
    absolute += [f"file:{out}", f"~/{SECRET}", "~root/x.png", "/dev/zero", "/dev/stdin"]
    absolute += ["/etc/passwd", "/proc/self/environ", "/proc/self/mem", "/", "//", "."]
    links = ["link.png", "a/dir/patient.png", "a/chain/patient.png", "a/dir/../../link.png"]
    windows = [
        f"..\\{SECRET}",
        f"a\\..\\..\\{SECRET}",
        "C:\\secret\\patient.png",
        "\\\\host\\x.png",
    ]
    odd = ["a/1.png\0.txt", f"../{SECRET}\0", "\0", "a/\0/1.png", "..", "a/..", "a/%2e%2e/x.png"]
    odd += [
        "%2e%2e/secret/patient.png",
        "..%2fsecret/patient.png",
        "http://localhost/x.png",
        f"{out}/../patient.png",
    ]
    return [*ups, *absolute, *links, *windows, *odd]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where every file that is opened from now on really lies."""
    paths_opened: list[str] = []
    active = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active[0] and event == "open" and isinstance(arguments[0], str | bytes):
            paths_opened.append(os.path.realpath(os.fsdecode(arguments[0])))

    sys.addaudithook(hook)  # it cannot be taken away again, only told to do nothing
    monkeypatch.setattr(builtins, "_vipbench_watch", active, raising=False)
    yield paths_opened  # type: ignore[misc]
    active[0] = False


@pytest.mark.parametrize("form", ["csv", "json"])
def test_fifty_hostile_paths(data: Path, opened: list[str], form: str) -> None:
    paths = hostile(data)
    assert len(paths) >= 50
    for path in paths:
        if form == "csv":
            quoted = path.replace('"', '""')
            (data / "m.csv").write_text(f'{HEAD}{REST}"{quoted}",x,train\n', encoding="utf-8")
            dataset: Any = CsvDataset("m.csv")
        else:
            rows = {
                "train": [["a/1.png", 0, "x"], ["a/2.png", 1, "y"], [path, 0, "x"]],
                "val": [],
                "test": [["a/3.png", 0, "x"], ["a/4.png", 1, "y"]],
            }
            (data / "m.json").write_text(json.dumps(rows), encoding="utf-8")
            dataset = SplitFileDataset(str(data / "m.json"))
        opened.clear()
        begun = time.process_time()
        with pytest.raises((DataError, UsageError)) as caught:
            dataset.fingerprint(dataset.load(data))
        assert time.process_time() - begun < 1
        assert str(caught.value)
        secret = os.path.realpath(data.parent / "secret")
        outside = [p for p in opened if p.startswith((secret, "/etc/passwd", "/dev/zero"))]
        assert not outside, (path, outside)


def test_a_pipe_and_a_circle_end(tmp_path: Path) -> None:
    """Reading a pipe without a writer would never end."""
    for i in range(6):
        picture(tmp_path / f"root/{'xy'[i % 2]}/{i}.png", i)
    dataset = FolderDataset(str(tmp_path / "root"))
    image = tmp_path / "root/x/0.png"
    for make, fact in ((os.mkfifo, "regular"), (lambda path: path.symlink_to("0.png"), "link")):
        image.unlink()
        make(image)
        with pytest.raises((DataError, ImageError), match=rf"0\.png.*{fact}"):
            dataset.fingerprint(dataset.load(tmp_path))


def test_three_hundred_flipped_bits(data: Path) -> None:
    rng, found = random.Random(1), 0
    good = {i: (data / f"a/{i}.png").read_bytes() for i in range(1, 5)}
    rows = [
        f"a/{i}.png,{'xy'[i % 2]},{'train' if i < 3 else 'test'},{hashlib.sha256(b).hexdigest()}"
        for i, b in good.items()
    ]
    (data / "m.csv").write_text("path,label,split,sha256\n" + "\n".join(rows) + "\n")
    CsvDataset("m.csv").load(data)
    for _ in range(300):
        i = rng.randrange(1, 5)
        content = bytearray(good[i])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (data / f"a/{i}.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"{i}\.png'.*SHA-256"):
            CsvDataset("m.csv").load(data)
        found += 1
        (data / f"a/{i}.png").write_bytes(good[i])
    assert found == 300


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def payloads(mark: Path) -> list[Any]:
    """Ten objects whose unpickling would leave the mark."""
    touch = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    return [
        Payload(Path.touch, mark),
        Payload(eval, touch),
        Payload(exec, touch),
        Payload(os.system, f"touch '{mark}'"),
        Payload(os.mkdir, str(mark)),
        Payload(subprocess.call, ["touch", str(mark)]),
        Payload(subprocess.check_output, ["touch", str(mark)]),
        Payload(builtins.open, str(mark), "w"),
        Payload(Path.write_text, mark, "x"),
        Payload(np.save, str(mark), np.zeros(1)),
    ]


@pytest.mark.parametrize("form", ["torch.save", "pickle"])
def test_twenty_payloads(tmp_path: Path, form: str) -> None:
    for number in range(10):
        mark = tmp_path / f"mark-{form}-{number}"
        content = {"weight": torch.ones(3), "extra": payloads(mark)[number]}
        path = tmp_path / f"w{number}.pt"
        if form == "torch.save":
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content))
        with pytest.raises(UsageError, match="run"):
            read_weights(path)
        left = [p.name for p in tmp_path.glob("mark-*")]
        assert not left
    # The payloads work where a file is read carelessly.
    pickle.loads(pickle.dumps(payloads(tmp_path / "mark")[0]))
    assert (tmp_path / "mark").exists()


def test_object_arrays_and_npz_payloads(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    good = np.zeros((4, 8, 8), np.uint8)
    labels = np.array([[0], [1], [0], [1]], np.uint8)
    evil = np.array([Payload(Path.touch, mark)] * 4, dtype=object)
    names = [
        f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels")
    ]
    for spoilt in names:
        arrays: dict[str, Any] = {n: labels if n.endswith("labels") else good for n in names}
        arrays[spoilt] = evil
        np.savez(tmp_path / "evil.npz", **arrays)
        with pytest.raises(DataError):
            NpzDataset(str(tmp_path / "evil.npz")).load(None)
        assert not mark.exists()


@pytest.mark.reliability
def test_a_manifest_of_a_million_rows(data: Path) -> None:
    with (data / "m.csv").open("w") as file:
        file.write(HEAD)
        file.writelines(
            f"a/{i}.png,{'xy'[i % 2]},{'train' if i % 3 else 'test'}\n" for i in range(1_000_000)
        )
    begun = time.process_time()
    with pytest.raises(DataError, match=r"there|missing"):
        CsvDataset("m.csv").load(data)
    assert time.process_time() - begun < 60
