"""MLflow: a run per cell in OUT/tracking/mlflow/mlflow.db (extra `mlflow`).

To view them: `mlflow ui --backend-store-uri sqlite:///OUT/tracking/mlflow/mlflow.db`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

import vipbench
from vipbench.files import open_own
from vipbench.hookspecs import TrackedCell, TrackedRun

EXPERIMENT = "vipbench"
# The longest parameter value that MLflow stores, in characters; the most parameters per call.
LENGTH, AT_ONCE = 500, 90


def _client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder.absolute() / 'mlflow.db'}")


@vipbench.hookimpl
def on_run_start(run: TrackedRun) -> None:
    """Create the database and the experiment."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.close(open_own(run.folder / "mlflow.db"))  # refuses a link to another file
    client = _client(run.folder)
    if client.get_experiment_by_name(EXPERIMENT) is None:
        artifacts = (run.folder.absolute() / "artifacts").as_uri()
        client.create_experiment(EXPERIMENT, artifact_location=artifacts)


@vipbench.hookimpl
def on_cell_done(run: TrackedRun, cell: TrackedCell) -> None:
    """Write a cell as an MLflow run, which replaces a run with the same key."""
    client = _client(run.folder)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    for old in client.search_runs([experiment], f"tags.`vipbench.key` = '{cell.key}'"):
        client.delete_run(old.info.run_id)
    begun = int(cell.created * 1000)
    tags = {"vipbench.key": cell.key} | ({"vipbench.error": cell.error} if cell.error else {})
    made = client.create_run(experiment, start_time=begun, run_name=cell.title)
    number = made.info.run_id
    points = [
        Metric(_name(f"epoch/{name}"), value, begun, epoch)
        for epoch, values in cell.epochs
        for name, value in values.items()
    ]
    points += [Metric(_name(f"test/{n}"), value, begun, 0) for n, value in cell.metrics.items()]
    given = [Param(_name(n), str(value)[:LENGTH]) for n, value in cell.settings.items()]
    client.log_batch(number, params=given[:AT_ONCE], tags=[RunTag(k, v) for k, v in tags.items()])
    for start in range(0, len(points), 10 * AT_ONCE):
        client.log_batch(number, metrics=points[start : start + 10 * AT_ONCE])
    client.set_terminated(number, "FAILED" if cell.error else "FINISHED", begun)


def _name(text: str) -> str:
    """A name with the characters that MLflow accepts: letters, digits and a few signs."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in text)
