"""Weights & Biases: a run per cell in OUT/tracking/wandb/CELL (extra `wandb`).

Nothing is uploaded by default: runs are written in offline mode, and `wandb sync
OUT/tracking/wandb/*/wandb/*` uploads them. WANDB_MODE=online uploads them at once; WANDB_PROJECT
sets another project.
"""

from __future__ import annotations

import os
from typing import Literal

import wandb

import vipbench
from vipbench.fetching import offline
from vipbench.hookspecs import TrackedCell, TrackedRun


@vipbench.hookimpl
def on_cell_done(run: TrackedRun, cell: TrackedCell) -> None:
    """Write a cell as its own run."""
    asked = os.environ.get("WANDB_MODE") == "online" and not offline.forbidden()
    mode: Literal["online", "offline"] = "online" if asked else "offline"
    made = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "vipbench"),
        dir=str(cell.folder),
        id=cell.key[:32],
        name=cell.title,
        group=str(cell.settings["dataset"]),
        config=dict(cell.settings),
        mode=mode,
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
    )
    try:
        for epoch, values in cell.epochs:
            made.log({f"epoch/{name}": value for name, value in values.items()}, step=epoch)
        made.summary.update({f"test/{name}": value for name, value in cell.metrics.items()})
        if cell.error:
            made.summary["error"] = cell.error
    finally:
        made.finish(exit_code=1 if cell.error else 0)
