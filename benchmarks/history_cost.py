"""What it costs to score validation images after every epoch, instead of ten times in a training.

    python -m benchmarks.history_cost [METHOD ...]

Trains five cells of 2 classes at 16 shots as one, on the bundled tiny-clip, with 4 validation
images a class, and prints seconds of the processor: without any validation, at the engine's
interval, after every epoch.
"""

from __future__ import annotations

import sys
import time

import torch

from vipbench.api import CellInfo, Labelled, Support, Task
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training import trainer as training
from vipbench.engine.training.stacking import TrainCell
from vipbench.plugins.registry import load_registry

CLASSES, SHOTS, SEEDS = ("nevus", "melanoma"), 16, (1, 2, 3, 4, 5)
SYMPTOMS = (("round", "even colour", "smooth edge"), ("uneven", "blurred edge", "blue veil"))


def cells(name: str) -> list[TrainCell]:
    registry = load_registry()
    tower, method = registry.backbone("tiny-clip")[0], registry.method(name)[0]
    found = []
    for seed in SEEDS:
        generator = cell_generator("history", SHOTS, seed)
        n = SHOTS * len(CLASSES)
        info = CellInfo(SHOTS, n, len(CLASSES), tower.name, tower.dim, tower.width, "toy")
        templates = ("a photo of a {}.",)
        task = Task(tower, CLASSES, templates, SYMPTOMS, info, generator, {}, None)
        hparams = method.HParams().for_cell(info)
        made = method(task, hparams)
        draw = generator("data")
        labels, few = torch.arange(n) % 2, torch.arange(8) % 2
        x, val = (torch.randn(k, tower.dim, generator=draw) for k in (n, 8))
        support = Support(x, labels, len(CLASSES), SHOTS, val=Labelled(val, few))
        made.prepare(support)
        recipe = hparams.recipe(info)
        assert recipe is not None
        found.append(TrainCell(made, recipe, support, generator))
    return found


def seconds(name: str, looks: int) -> float:
    training.LOOKS = looks
    some = cells(name)
    begin = time.process_time()
    training.train(some)
    return time.process_time() - begin


def main() -> None:
    torch.set_num_threads(1)
    print("method  none  ten times  every epoch")
    for name in sys.argv[1:] or ("coop", "vip", "taskres"):
        seconds(name, 0)  # the first is slower
        times = [min(seconds(name, looks) for _ in range(3)) for looks in (0, 10, 10**6)]
        shown = "  ".join(f"{t:.2f} s (+{100 * (t / times[0] - 1):.0f} %)" for t in times)
        print(f"{name}  {shown}")


if __name__ == "__main__":
    main()
