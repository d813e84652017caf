"""`vipbench evaluate`: score a prompt file on a dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vipbench.cli.commands.predict import CAUTION
from vipbench.cli.exit_codes import OK
from vipbench.engine.explain.prompt_files import Trained, rebound, split_inputs, unpack
from vipbench.engine.features.features import Features
from vipbench.engine.planning.loading import load_whole, users
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry
from vipbench.results.records.metrics import METRICS, compute_metrics
from vipbench.runspec.run import RunSpec
from vipbench.text import clean


def evaluate_command(
    prompt: Path,
    dataset: str,
    root: Path | None,
    plugins_dir: Path | None,
    symptoms: Sequence[str] = (),
    images: Sequence[str] = (),
    backbone: str | None = None,
) -> int:
    """Print the metrics on a test split. symptoms: files in the place of the dataset's own, read
    where its classes are others than those that were trained on. images: where a table's are.
    backbone: the prompt file's, where its weights are local."""
    registry = load_registry(plugins_dir)
    trained = unpack(prompt, registry, named=backbone)
    given = {"datasets": (dataset,), "data_root": root, "symptoms": symptoms or None}
    given["images"] = images or None
    spec = RunSpec().merge(given)
    if spec.labels:
        named = ", ".join(spec.labels["symptoms"])
        raise UsageError(f"--symptoms: evaluate takes one file without a label; got {named}=")
    data = load_whole(registry, spec, dataset, "`evaluate`")
    order = _same_classes(trained, data.dataset.class_names)
    if order is None:
        trained = rebound(trained, data)
        order = list(range(len(trained.class_names)))
        print("Its classes differ from those trained on; the texts are those of this dataset.")
    plugins = users(data, trained.backbone)
    tower = trained.backbone.backbone
    features = Features(tower, data.splits, data.fingerprint, plugins=plugins)
    scores = trained.score(split_inputs(trained, features, "test"))[:, order].numpy()
    for notice in data.notices:
        print(f"note: {clean(notice)}", file=sys.stderr)
    labels = data.splits["test"].labels
    metrics = compute_metrics(labels, scores, list(data.dataset.class_names))
    card = trained.card
    print(
        f"{card['method']} trained on {card['dataset']}, scored on {data.dataset.name} "
        f"({len(labels)} test images)"
    )
    if data.fingerprint == card["dataset_fingerprint"]:
        print("It was trained on the same dataset: this is no cross-dataset result.")
    for name in METRICS:
        if isinstance(value := metrics.get(name), float):
            print(f"{name}: {value:.4f}")
    print(f"licence of the data: {data.dataset.licence}\n{CAUTION}")
    return OK


def _same_classes(trained: Trained, wanted: Sequence[str]) -> list[int] | None:
    """Of each class of the dataset its column in the scores; None where the classes are others."""
    place = {name.casefold().replace("_", " "): i for i, name in enumerate(trained.class_names)}
    found = [place.get(name.casefold().replace("_", " "), -1) for name in wanted]
    return None if -1 in found or len(wanted) != len(place) else found
