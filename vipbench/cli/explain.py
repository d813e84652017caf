"""`vipbench explain`, `prompts`, `predict` and `evaluate`: what they do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vipbench.cli import OK
from vipbench.cli.text import clean, columns
from vipbench.engine.elsewhere import elsewhere
from vipbench.engine.explain import explain
from vipbench.engine.explainpage import write
from vipbench.engine.features import Features
from vipbench.engine.loading import load_dataset
from vipbench.engine.trained import Trained, export, split_inputs, unpack
from vipbench.errors import UsageError
from vipbench.images import ImageError
from vipbench.plugins import load_registry
from vipbench.results.metrics import METRICS, compute_metrics
from vipbench.spec import RunSpec

CAUTION = "Research only, not for clinical use."


def explain_command(
    run: Path,
    paths: Sequence[Path],
    errors: int,
    out: Path,
    key: str | None,
    embed: bool,
    include_paths: bool = False,
) -> int:
    """Write the page or figure, and print what decides."""
    if out.suffix.lower() not in (".html", ".htm", ".png", ".pdf"):
        raise UsageError(f"-o takes a name that ends in .html, .png or .pdf, got '{out.name}'")
    try:
        made = explain(run, paths, errors, key, include_paths)
    except ImageError as error:
        raise UsageError(str(error)) from None
    write(made, out, bool(paths), embed)
    names = made.cell.data.dataset.class_names
    for one in made.images:
        first, second = one.order[:2]
        truth = "" if one.label is None else f", true {names[one.label]}"
        called = clean(one.name) if one.name == one.shown else f"{one.shown} ({clean(one.name)})"
        print(f"{called}: {names[first]}, runner-up {names[second]}{truth}")
    rows = [("class", "symptom", "decides for", "of these right")]
    for name, some in zip(names, made.deciding, strict=True):
        rows += [(name, clean(text), str(n), str(right)) for text, n, right in some]
    print("\n".join(columns(rows)))
    print(
        f"{len(made.rescued)} of {made.n_test} test images are right here and wrong by class "
        f"names, {len(made.lost)} the other way round"
    )
    if made.words:
        said = "; ".join(", ".join(f"{w} {d:.3f}" for w, d in row) for row in made.words)
        print(
            f"Nearest of {made.n_words:,} tokens to the context vectors, with distances (they "
            f"seldom mean anything): {said}"
        )
    if not made.embeddable(bool(paths), embed):
        print("Images are not in the page: their licence is not known to allow it", file=sys.stderr)
    print(f"Wrote {out}. {CAUTION}")
    return OK


def prompts_command(run: Path, out: Path, patient_data: bool) -> int:
    """Write the prompt files."""
    made, left = export(run, out, patient_data)
    if left:
        print(
            f"note: left out, as they may hold features of single images: {clean('; '.join(left))}"
            " (--patient-data writes them, marked contains-patient-data)",
            file=sys.stderr,
        )
    if not made and not left:
        raise UsageError(f"{run} holds no finished cell with learned parameters")
    print(f"{len(made)} prompt files with cards in {out}. {CAUTION}")
    return OK


def predict_command(prompt: Path, images: Sequence[Path], plugins_dir: Path | None) -> int:
    """Print class and share of each image."""
    trained = unpack(prompt, load_registry(plugins_dir))
    try:
        scores = trained.score(trained.inputs(images))
    except ImageError as error:
        raise UsageError(str(error)) from None
    rows = [("image", "class", "softmax share", "runner-up")]
    for path, row in zip(images, scores.softmax(-1), strict=True):
        first, second = row.argsort(descending=True, stable=True)[:2].tolist()
        names = trained.class_names
        rows.append((clean(str(path)), names[first], f"{row[first]:.3f}", names[second]))
    print("\n".join(columns(rows)))
    print(f"{CAUTION} Shares are no calibrated probabilities.")
    return OK


def evaluate_command(
    prompt: Path,
    dataset: str,
    root: Path | None,
    plugins_dir: Path | None,
    symptoms: Sequence[str] = (),
) -> int:
    """Print the metrics on a test split. symptoms: files in the place of the dataset's own, read
    where its classes are others than those that were trained on."""
    registry = load_registry(plugins_dir)
    trained = unpack(prompt, registry)
    given = {"datasets": (dataset,), "data_root": root, "symptoms": symptoms or None}
    spec = RunSpec().merge(given)
    data = load_dataset(registry, spec, dataset)
    order = _same_classes(trained, data.dataset.class_names)
    if order is None:
        trained = elsewhere(trained, data)
        order = list(range(len(trained.class_names)))
        print("Its classes are others than those trained on; the texts are those of this dataset.")
    features = Features(trained.backbone.backbone, data.splits, data.fingerprint)
    scores = trained.score(split_inputs(trained, features, "test"))[:, order].numpy()
    labels = data.splits["test"].labels
    metrics = compute_metrics(labels, scores, list(data.dataset.class_names))
    card = trained.card
    print(
        f"{card['method']} trained on {card['dataset']}, scored on {data.dataset.name} "
        f"({len(labels)} test images)"
    )
    if data.fingerprint == card["dataset_fingerprint"]:
        print("The same data that it was trained on: no cross-dataset figure.")
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
