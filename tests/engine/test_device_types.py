"""Branches on the type of a device (listed in benchmarks/gpu/README.md), with the device faked."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves

from vipbench import api, testing
from vipbench.backbones.towers import frozen_vit, linear, text
from vipbench.engine import doctor, machine, other_device, precision
from vipbench.engine.evaluation import estimate, records, runner
from vipbench.engine.features.images import ImageReader, Wish
from vipbench.engine.guard import GlobalRandomError, own_randomness
from vipbench.engine.training import cuda_graphs, optim
from vipbench.errors import UsageError
from vipbench.methods.cliplora import CLIPLoRA
from vipbench.methods.gda import GDA
from vipbench.methods.lp_plus_plus import LPPlusPlus
from vipbench.methods.ncm import NCM
from vipbench.methods.shared import prototypes
from vipbench.plugins.registry import load_registry
from vipbench.runspec.run import RunSpec

GPU, MPS, XPU = (torch.device(kind, 0) for kind in ("cuda", "mps", "xpu"))
CPU = torch.device("cpu")


class Cuda:
    """What vipbench asks of `torch.cuda`, for a machine with `count` devices. state: of the random
    generator, which draws nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.state = torch.zeros(1)
        self.current = -1
        facts = SimpleNamespace(name="Toy 9000", total_memory=8e9)
        for name, fake in {
            "is_available": lambda: count > 0,
            "device_count": lambda: count,
            "set_device": lambda number: setattr(self, "current", number),
            "get_device_name": lambda device: "Toy 9000",
            "get_device_properties": lambda number: facts,
            "is_bf16_supported": lambda: True,
            "mem_get_info": lambda device: (1234, 8_000_000_000),
            "memory_reserved": lambda device: 500,
            "memory_allocated": lambda device: 200,
            "max_memory_allocated": lambda device: 5678,
            "manual_seed": lambda seed: setattr(self, "state", torch.tensor([float(seed)])),
            "get_rng_state": lambda device: self.state.clone(),
            "set_rng_state": lambda state, device: setattr(self, "state", state),
            "Stream": lambda device: f"a stream of {device}",
        }.items():
            for module in (torch.cuda, torch.xpu, torch.mps):
                if module is torch.cuda or "rng" in name or "mem" in name or "seed" in name:
                    monkeypatch.setattr(module, name, fake, raising=module is torch.cuda)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch, 2)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has `mps` and no `xpu`."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)


class Moved:
    """A tensor that notes how it goes to a device."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def pin_memory(self) -> Moved:
        self.calls.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> Moved:
        self.calls.append((device, non_blocking))
        return self


def test_towers_off_the_cpu_give_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    tower: Any = load_registry().backbone("tiny-clip")[0]
    seeded = torch.Generator().manual_seed(0)
    pixels = torch.randn(40, 3, tower.image_size, tower.image_size, generator=seeded)
    prompts = tower.embed([("", "a nevus."), ("", "melanoma with dark edges")])
    context = torch.randn(2, 4, tower.width, generator=seeded) * 0.1
    gradients = vmap(grad(lambda c: tower.encode_text(prompts, c).square().sum()))

    def numbers() -> list[Tensor]:
        return [tower.encode_image(pixels).detach(), tower.encode_text(prompts), gradients(context)]

    exact = numbers()
    for module in (linear, frozen_vit, text):
        monkeypatch.setattr(module, "on_cpu", lambda x: False)
    for found, expected in zip(numbers(), exact, strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    tower.training_precision = "bf16"
    rough = gradients(context)
    assert 0 < (rough - exact[2]).norm() < 0.05 * exact[2].norm()


def test_records_name_the_gpu(cuda: Cuda) -> None:
    assert records._device_name(GPU) == "Toy 9000"
    assert records._device_name(CPU) == "cpu"
    assert records._cuda(CPU, "fp32") == {}
    assert {records._cuda(GPU, name)["tf32"] for name in ("fp32", "bf16")} == {"off"}
    assert records._cuda(GPU, "tf32")["tf32"] == "features"


def test_peak_memory_is_the_gpus(cuda: Cuda) -> None:
    features: Any = SimpleNamespace(backbone=SimpleNamespace(device=GPU))
    assert estimate._peak(features) == 5678
    features.backbone.device = CPU
    assert estimate._peak(features) > 1e7


@pytest.mark.parametrize("device", [GPU, MPS, CPU])
def test_images_go_to_a_gpu_from_pinned_memory(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ready(ImageReader):
        def _start(self, *_: Any) -> Future[list[Tensor]]:
            made: Future[list[Tensor]] = Future()
            made.set_result([torch.zeros(3, 2, 2)])
            return made

    backbone: Any = SimpleNamespace(device=device)
    splits: Any = {"train": SimpleNamespace(images=["an image"])}
    value: Any = Moved()
    monkeypatch.setattr(torch, "stack", lambda images: value)
    Ready(backbone, splits).begin([Wish("train", None, 0, 0)])()
    assert value.calls == (["pinned", (GPU, True)] if device is GPU else [(device, False)])


@pytest.mark.parametrize("device", [GPU, MPS, XPU])
def test_a_devices_generator_is_seeded_guarded_and_restored(
    cuda: Cuda, device: torch.device
) -> None:
    before = cuda.state
    with own_randomness(7, "a method", device):
        assert cuda.state == 7
    assert torch.equal(cuda.state, before)
    with pytest.raises(GlobalRandomError), own_randomness(7, "a method", device):
        cuda.state = cuda.state + 1
    assert torch.equal(cuda.state, before)
    with own_randomness(7, "a method", CPU):
        assert torch.equal(cuda.state, before)


def test_free_memory_is_the_gpus(cuda: Cuda) -> None:
    # What PyTorch keeps for later use is free, too.
    assert machine.free_memory(GPU) == machine.free_memory(XPU) == 1234 + 300
    assert machine.free_memory(CPU) > 1e6


def test_a_phase_ends_when_the_device_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    features: Any = SimpleNamespace(
        backbone=SimpleNamespace(device=GPU), encoding=SimpleNamespace(seconds=0.0)
    )
    group = object.__new__(runner.GroupRunner)
    group.features = features
    with group._clock():
        assert not waited
    machine.wait(CPU)
    assert waited == [GPU]
    assert not machine.is_lost(GPU)


def test_a_lost_device_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lost(device: torch.device) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    class Failing(NCM):
        name = "failing"

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("an index is out of bounds")

    toy = testing._Toy(Failing, None, load_registry(), str(tmp_path))
    cells = toy.cells()[:1]
    [[done]] = toy.runner().run(cells)
    assert not done.record.ok
    monkeypatch.setattr(torch.accelerator, "synchronize", lost)
    monkeypatch.setattr(runner, "is_lost", lambda device: machine.is_lost(GPU))
    with pytest.raises(runner.LostDeviceError, match=r"'failing'.*out of bounds"):
        next(toy.runner().run(cells))


def test_a_worker_computes_on_its_gpu(cuda: Cuda) -> None:
    share = machine.share(RunSpec.parse({"methods": "zero-shot"}))
    assert (share.workers, share.description) == (2, "cuda:0,cuda:1")
    assert (share.device(3), cuda.current) == (torch.device("cuda", 1), 1)


def test_steps_are_recorded_on_a_gpu_alone(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_graphs.VARIABLE, "1")
    made = cuda_graphs.replays(GPU, pytest.fail)
    assert made is not None
    assert isinstance(made.recorder, cuda_graphs.CudaGraphs)
    assert cuda_graphs.replays(CPU, pytest.fail) is None


def test_tf32_needs_a_gpu() -> None:
    precision.require("tf32", GPU)
    for device in (CPU, torch.device("mps", 0)):
        with pytest.raises(UsageError, match=rf"CUDA.*{device.type}"):
            precision.require("tf32", device)


def test_doctor_lists_devices(cuda: Cuda, others: None) -> None:
    *gpus, other = doctor._devices()
    assert [line.split(" ")[0] for line in gpus] == ["cuda:0", "cuda:1"]
    assert all(word in gpus[1] for word in ("Toy 9000", "8 GB", "bf16"))
    assert "mps (" in other


def test_other_devices_are_marked_as_not_tested(others: None) -> None:
    share = machine.share(RunSpec.parse({"methods": "zero-shot", "device": "mps", "workers": 3}))
    assert (share.workers, share.on_device, share.description) == (3, 3, "mps (not tested)")
    assert share.device(2) == torch.device("mps", 0)
    assert records._device_name(share.device(2)) == "mps (not tested)"
    assert machine.free_memory(share.device(2)) > 1e6


def test_another_device_that_is_not_there(others: None) -> None:
    with pytest.raises(UsageError, match=r"--device xpu.*--device cpu"):
        machine.share(RunSpec.parse({"methods": "zero-shot", "device": "xpu"}))


@pytest.mark.skipif(torch.xpu.is_available(), reason="needs a machine without an xpu device")
def test_the_command_line_refuses_it_in_one_sentence() -> None:
    command = [sys.executable, "-m", "vipbench", "run", "--device", "xpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "--device xpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_other_device_is_taken_unasked(others: None, monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch, 0)
    assert machine.share(RunSpec.parse({"methods": "zero-shot"})).device(0) == CPU


@dataclass(frozen=True)
class FewIterations(LPPlusPlus.HParams):
    iterations: api.Count = 2


class ShortLPPlusPlus(LPPlusPlus):
    HParams = FewIterations


@pytest.mark.parametrize("method", [ShortLPPlusPlus, GDA, CLIPLoRA])
def test_no_float64_on_a_device_without_it(
    method: type[api.Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = other_device._Operations.__torch_dispatch__

    def refusing(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(self, func, types, args, kwargs)
        for value in tree_leaves(out):
            double = isinstance(value, Tensor) and value.dtype == torch.float64
            if double and self.labels.on_device(value):
                self.labels.refuse(f"{func} gives float64")
        return out

    monkeypatch.setattr(other_device._Operations, "__torch_dispatch__", refusing)
    assert prototypes.WITHOUT_FLOAT64 == optim.WITHOUT_FLOAT64 == {"mps", "xpu"}
    # The other device of the rule calls itself a CPU.
    monkeypatch.setattr(prototypes, "WITHOUT_FLOAT64", {"cpu"})
    monkeypatch.setattr(optim, "WITHOUT_FLOAT64", {"cpu"})
    testing.check_device(method)
