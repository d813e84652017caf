"""Processes that decode images: the numbers and messages of threads, and nobody left behind."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import warm
from tests.conftest import REPO, Cli
from tests.engine.light import Light, OwnWay, Shrink
from tests.reliability import grid
from vipbench import api
from vipbench.engine.features import decode_pool as decoders
from vipbench.engine.features.features import Encoding, Features
from vipbench.engine.planning.loading import load_backbone
from vipbench.engine.planning.pixels import examine
from vipbench.errors import UsageError
from vipbench.images import PixelRange
from vipbench.plugins.files import load_file
from vipbench.plugins.registry import load_registry
from vipbench.testing import ConformanceError, check_backbone

COUNT = 80


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photographs of several kinds: PNG with and without transparency, JPEG, JPEG lying on its
    side, 16-bit grey."""
    folder = tmp_path_factory.mktemp("files")
    rng, found = np.random.default_rng(0), []
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (40 + i % 7, 60, 3 + i % 2)).astype(np.uint8)
        image, exif = Image.fromarray(pixels), Image.Exif()
        path = folder / f"{i}.{'png' if i % 2 else 'jpg'}"
        if i % 10 == 4:
            exif[274] = 6
        if i % 10 == 5:
            image = Image.fromarray(rng.integers(0, 2**16, (30, 50)).astype(np.uint16))
        if i % 2 == 0:
            image = image.convert("RGB")
        image.save(path, exif=exif)
        found.append(path)
    return found


def splits(images: Sequence[Any]) -> dict[str, api.Split]:
    n = len(images)
    labels = np.zeros(n, dtype=np.int64)
    return {"test": api.Split(images, labels, tuple(f"image-{i}" for i in range(n)))}


def encoded(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    count: int,
    images: Sequence[Any] | dict[str, api.Split],
    backbone: api.ImageBackbone | None = None,
    meanwhile: Callable[[], None] = lambda: None,
    cut: int = 0,
) -> tuple[Tensor, list[str]]:
    """Features of the evaluation view and of `cut` training views, and the notes; from a cache of
    its own. meanwhile: called after each batch."""
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))
    monkeypatch.setenv("VIPBENCH_DECODERS", str(count))
    notes: list[str] = []
    given = images if isinstance(images, dict) else splits(images)
    encoding = Encoding(lambda done, total: meanwhile())
    mine = Features(backbone or Light(), given, "some", note=notes.append, encoding=encoding)
    every = range(len(given["test"]))
    plain = mine.plain("test", every)
    views, every_view = api.Views(), [plain]
    if cut:
        mine.prepare_views("test", every, views, 1, cut)
        every_view += [mine.view("test", every, views, 1, v) for v in range(cut)]
    return torch.stack(every_view), notes


def opened_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that this process opens from now on."""
    names: list[str] = []
    whole = api.Split.open_given

    def counted(split: api.Split, index: int, image: Any) -> Image.Image:
        names.append(split.ids[index])
        return whole(split, index, image)

    monkeypatch.setattr(api.Split, "open_given", counted)
    return names


def test_features_are_those_of_threads_in_every_bit(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    images: list[Any] = [*files, *map(str, files[:5])]
    images += [rng.integers(0, 256, (20, 30), dtype=np.uint8)[:, ::2] for _ in range(5)]
    images += [Image.open(path) for path in files[:5]]
    alone = encoded(monkeypatch, tmp_path, 0, images, cut=3)
    names, beside = opened_here(monkeypatch), set[int]()
    found = encoded(
        monkeypatch, tmp_path, 2, images,
        meanwhile=lambda: beside.update(c.pid or 0 for c in active_children()), cut=3,
    )  # fmt: skip
    assert torch.equal(found[0], alone[0])
    assert len(found[0].unique(dim=0)) == 4
    assert found[1] == alone[1] == []
    # Two for the evaluation views and two for the training views, which are gone with them.
    assert len(beside) == 4
    assert not active_children()
    # This process opened what it was given opened, and one image of each decoder to check it.
    assert len([n for n in names if n < "image-90"]) <= 2 * 5 + 2 * 2
    assert {f"image-{i}" for i in range(90, 95)} <= set(names)


def test_processes_read_pixels_by_the_range_of_the_dataset_and_open_what_was_planned(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned = examine(splits(files), None)[0]["test"]
    wide = dataclasses.replace(planned, pixels=PixelRange(0, 1 << 17, "the card's bits"))
    alone = encoded(monkeypatch, tmp_path, 0, {"test": wide})
    names = opened_here(monkeypatch)
    assert torch.equal(encoded(monkeypatch, tmp_path, 2, {"test": wide})[0], alone[0])
    assert not torch.equal(encoded(monkeypatch, tmp_path, 0, {"test": planned})[0], alone[0])
    assert len(names) < 2 * len(files), "processes decoded nothing"
    other = ("0" * 64, *planned.digests[1:])
    with pytest.raises(api.ImageError, match=r"image-0.*changed"):
        encoded(monkeypatch, tmp_path, 2, {"test": dataclasses.replace(planned, planned=other)})


def test_a_run_with_processes_is_a_run_with_threads(cli: Cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2), ("test", 35)):
        for label, name in enumerate(("dark", "bright")):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (70, 90, 3)) + 40 * label
                kind = "png" if i % 2 else "jpg"
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.{kind}")
    found = []
    for count in ("0", "2"):
        out = tmp_path / f"out-{count}"
        env = {"VIPBENCH_DECODERS": count, "VIPBENCH_CACHE": str(tmp_path / f"cache-{count}")}
        done = cli(
            *("run", "--methods", "linear-probe", "--datasets", f"folder:{tmp_path / 'data'}"),
            *("--backbones", "tiny-clip", "--shots", "2", "--seeds", "1", "--views", "none"),
            *("--out", out),
            env=env,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "decode" not in done.stdout + done.stderr
        found.append(grid.bits(out))
    assert len(found[0]) == 1
    assert found[0] == found[1]


def test_built_in_backbones_send_their_transform_and_no_weights() -> None:
    registry = load_registry()
    for source in ("tiny-clip", "timm:vit_tiny_patch16_224+random"):
        backbone = load_backbone(registry, source).backbone
        assert len(decoders.portable(backbone)) < 2000
        alone = backbone.preprocess_alone()
        assert alone is not None
        image = Image.effect_noise((50, 40), 60).convert("RGB")
        assert torch.equal(alone(image), backbone.preprocess(image))


@pytest.mark.parametrize("kind", ["damaged", "missing", "bomb"])
def test_an_image_that_cannot_be_read_gives_the_message_of_threads(
    kind: str, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    if kind == "damaged":
        bad.write_bytes(files[1].read_bytes()[:300])
    elif kind == "bomb":
        Image.new("1", (9000, 8000)).save(bad)
    images = [*files[:70], bad, *files[70:]]
    output = []
    for count in (0, 2):
        with pytest.raises(api.ImageError) as caught:
            encoded(monkeypatch, tmp_path, count, images)
        output.append(str(caught.value))
    assert output[0] == output[1]
    assert "image-70" in output[0]
    assert not active_children()


@pytest.mark.parametrize("victims", [1, 2])
def test_a_decoder_that_is_killed_costs_a_note(
    victims: int, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def kill() -> None:
        for child in active_children()[:victims] if not killed else []:
            killed.append(child.pid)
            child.kill()

    killed: list[int | None] = []
    images = files * 4
    alone = encoded(monkeypatch, tmp_path, 0, images, cut=1)
    found = encoded(monkeypatch, tmp_path, 2, images, meanwhile=kill, cut=1)
    assert len(killed) == victims
    assert torch.equal(found[0], alone[0])
    assert found[1][:1] == [
        f"{victims} of 2 processes that decode images ended early (SIGKILL; perhaps out of "
        "memory); threads of the worker decoded in their place (VIPBENCH_DECODERS=0 starts none)"
    ]
    # Where all were lost, the training views start none again.
    lost = [note for note in found[1][1:] if "all that were started are lost" in note]
    assert len(lost) == len(found[1]) - 1 == victims - 1


def test_one_killed_while_it_writes_keeps_nobody_waiting(tmp_path: Path) -> None:
    image = tmp_path / "large.png"
    Image.new("RGB", (9, 9)).save(image)
    # Far more than a pipe holds: it stands in the midst of its answer until it is read.
    keys = tuple(() for _ in range(50_000))
    job, small = (decoders.Job(str(image), 8, ((None, k),)) for k in (keys, keys[:1]))
    with decoders.Decoders(decoders.portable(Light()), 1) as some:
        assert len(some.threads.submit(some.run, small, lambda: [Shrink()(Image.open(image))])
                   .result()) == 1  # fmt: skip
        [child] = active_children()
        waiting = some.threads.submit(some.run, job, lambda: [])
        time.sleep(0.2)
        child.kill()
        assert waiting.result(timeout=60) == []
    assert "SIGKILL" in some.problems[0]


@pytest.mark.parametrize(
    ("backbone", "why"),
    [
        (Light(lambda image: Shrink()(image)), "lambda"),
        (OwnWay(), "`preprocess_alone`"),
        (Light(torch.nn.Linear(200, 200)), "weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_left_to_threads_and_reported_once(
    backbone: Light, why: str, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if isinstance(backbone._shrink, torch.nn.Linear):
        monkeypatch.setattr(type(backbone), "preprocess", lambda self, image: Shrink()(image))
    alone = encoded(monkeypatch, tmp_path, 0, files, backbone)
    found = encoded(monkeypatch, tmp_path, 2, files, backbone)
    assert torch.equal(found[0], alone[0])
    assert len(found[1]) == 1
    assert why in found[1][0]
    assert "VIPBENCH_DECODERS" in found[1][0]


IN_A_FILE = """
from tests.engine.light import Light, Shrink

class Mine(Shrink):
    pass

def register_backbones(register):
    register("mine", lambda argument: Light(Mine()))
"""


@pytest.mark.parametrize("case", ["plugin", "a liar"])
def test_what_another_process_cannot_do_right_is_left_to_threads(
    case: str, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    liar = Shrink(lie=1e-3, home=os.getpid())
    why = "another process makes other pixels of its images"
    if case != "a liar":
        (tmp_path / "mine.py").write_text(IN_A_FILE)
        liar = load_file(tmp_path / "mine.py", IN_A_FILE.encode()).Mine()
        why = "another process cannot read its preprocessing (ModuleNotFoundError"
    backbone = Light(liar)
    backbone.name = case
    alone = encoded(monkeypatch, tmp_path, 0, files, backbone, cut=1)
    started: list[int | None] = []
    start = decoders._Decoder.__init__

    def counted(self: Any, transform: bytes) -> None:
        start(self, transform)
        started.append(self.process.pid)

    monkeypatch.setattr(decoders._Decoder, "__init__", counted)
    found = encoded(monkeypatch, tmp_path, 2, files, backbone, cut=1)
    assert torch.equal(found[0], alone[0])
    assert len(found[1]) == 1
    assert re.search(f"'{case}': .*VIPBENCH_DECODERS", found[1][0])
    assert why in found[1][0]
    # The training views need no second try.
    assert len(started) == 2


class Reuses(Light):
    """Gives the same memory for every batch."""

    name = "reuses"
    out = torch.zeros(64, 192)

    def encode_image(self, pixels: Tensor, tap: api.Tap | None = None) -> Tensor:
        self.out[: len(pixels)] = pixels.flatten(1)
        return self.out[: len(pixels)]


def test_a_tower_that_reuses_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(70)]
    expected, _ = encoded(monkeypatch, tmp_path, 0, images)
    found, _ = encoded(monkeypatch, tmp_path, 0, images, Reuses())
    assert torch.equal(found, expected)


class ReusesPixels(Light):
    """Gives the same memory for every image."""

    shared = torch.zeros(3, 8, 8)

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.shared.copy_(super().preprocess(image))


def test_pixels_that_a_later_image_overwrites_break_a_rule() -> None:
    with pytest.raises(ConformanceError, match="pixels"):
        check_backbone(ReusesPixels())


@pytest.mark.parametrize("given", ["two", "-1", "1.5", "65", "²"])
def test_what_is_no_number_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIPBENCH_DECODERS", given)
    with pytest.raises(UsageError, match=f"VIPBENCH_DECODERS is '{given}'"):
        Features(Light(), {}, "some")


def test_the_command_line_refuses_it_in_one_line(cli: Cli) -> None:
    done = cli("run", "--methods", "zero-shot", "--out", "r", env={"VIPBENCH_DECODERS": "many"})
    assert done.returncode == 2
    assert "VIPBENCH_DECODERS is 'many'" in done.stderr
    assert "Traceback" not in done.stderr


def test_threads_decode_unless_processes_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIPBENCH_DECODERS", raising=False)
    assert decoders.wanted(10**6) == 0
    monkeypatch.setenv("VIPBENCH_DECODERS", "3")
    assert decoders.wanted(64) == 3
    assert decoders.wanted(63) == 0
    monkeypatch.setenv("VIPBENCH_DECODERS", "0")
    assert decoders.wanted(10**6) == 0


ENCODES = """
import sys, time
from pathlib import Path
import numpy as np
from tests.engine.light import Light
from vipbench import api
from vipbench.engine.features.features import Encoding, Features

images = sorted(Path(sys.argv[1]).iterdir()) * 50
ids = tuple(map(str, range(len(images))))
split = api.Split(images, np.zeros(len(images), dtype=np.int64), ids)

def slowly(done, total):
    print(done, flush=True)
    time.sleep(0.3)

if __name__ == "__main__":
    encoding = Encoding(slowly)
    Features(Light(), {"test": split}, "some", encoding=encoding).plain("test", range(len(ids)))
"""


@pytest.mark.parametrize(
    ("number", "early"),
    [
        (signal.SIGKILL, False),
        (signal.SIGINT, True),
        (signal.SIGINT, False),
        (signal.SIGTERM, False),
    ],
)
def test_none_outlives_its_worker(
    number: signal.Signals, early: bool, files: list[Path], tmp_path: Path
) -> None:
    """early: while decoders import. SIGINT and SIGTERM reach all of them, as from a terminal."""
    script = tmp_path / "encodes.py"
    script.write_text(ENCODES)
    env = {"PYTHONPATH": str(REPO), "VIPBENCH_CACHE": str(tmp_path), "VIPBENCH_DECODERS": "2"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(files[0].parent)],
        env={**os.environ, **env},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=warm.listen,
    )
    try:
        if not early:
            assert process.stdout is not None
            assert process.stdout.readline() == "32\n", process.communicate()
        begun = wait_for(process, lambda: spawned(process.pid), 2)
        if number == signal.SIGINT:
            assert_deaf(begun)
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
        grid.assert_gone(set(begun), seconds=30)
    finally:
        process.kill()
    if number == signal.SIGINT:
        # The worker's own, which ends with it here as it stands.
        assert err.count("Traceback") == err.count("KeyboardInterrupt") == 1, err
        assert "decoder.py" not in err
        assert "spawn_main" not in err
    else:
        assert "Traceback" not in err, err


PLUGIN = '''
"""A slow tower whose transform is torchvision's."""

import time
import torch
from torch import nn
from torchvision import transforms
import vipbench
from vipbench import api


class Slow(api.ImageBackbone):
    """Pixels, with a pause."""

    vision_width, vision_layers, image_size, dim = None, 0, 8, 192
    name, fingerprint = "slow", "slow-1"
    device = torch.device("cpu")
    transform = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])

    def __init__(self, argument):
        pass

    def to(self, device):
        pass

    def preprocess(self, image):
        return self.transform(image)

    def preprocess_alone(self):
        return self.transform

    def encode_image(self, pixels, tap=None):
        time.sleep(0.5)
        return pixels.flatten(1)

    def trainable_copy(self, pretrained=True):
        return nn.Flatten()


@vipbench.hookimpl
def register_backbones(register):
    register("slow", Slow)
'''


def test_ctrl_c_while_a_run_decodes(tmp_path: Path) -> None:
    data = grid.write_data(tmp_path, test=1000)
    (data / "plugins" / "slow.py").write_text(PLUGIN)
    process = grid.start(
        data, data / "out", "steady", "--backbones", "slow", env={"VIPBENCH_DECODERS": "2"}
    )
    try:
        begun = wait_for(
            process,
            lambda: [child for worker in grid.children(process.pid) for child in spawned(worker)],
            2,
        )
        assert_deaf(begun)
        process.send_signal(signal.SIGINT)
        status, _, err = grid.finish(process, timeout=60)
        grid.assert_gone(set(begun))
    finally:
        process.kill()
    assert status == 130, err
    assert "Interrupted" in err
    assert "Traceback" not in err


def assert_deaf(begun: list[int]) -> None:
    """Ctrl-C does nothing to any of them."""
    for pid in begun:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(map(grid.alive, begun))


def spawned(pid: int) -> list[int]:
    """The living decoders of a process, whichever of its threads started them."""
    found = []
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(task.read_text().rpartition(")")[2].split()[1])
            line = task.with_name("cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in line and grid.alive(int(task.parent.name)):
            found.append(int(task.parent.name))
    return found


def wait_for(process: subprocess.Popen[str], look: Callable[[], list[int]], n: int) -> list[int]:
    """What `look` gives once that is `n` of them."""
    deadline = time.monotonic() + 120
    while len(found := look()) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
