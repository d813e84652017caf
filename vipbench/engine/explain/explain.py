"""What a trained method saw in an image, symptom by symptom, and what decides over a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from vipbench.api import Backbone
from vipbench.engine.explain.prompt_files import Trained, open_run, restore, runner_of
from vipbench.engine.planning.cells import LoadedCell
from vipbench.engine.planning.protocols import test_rows, test_split
from vipbench.errors import UsageError
from vipbench.results.sharing.privacy import Pseudonyms
from vipbench.results.store.store import Store

Array = npt.NDArray[np.float64]
NEVER_EMBEDDED = ("derm7pt",)


@dataclass(frozen=True)
class Explained:
    """One image. scores (C,): the method's. cosines (C,K): image and symptom, NaN for padding.
    label: None for an image that is in no test set. name: its file's or its id in the data, for
    the user alone; shown: what pages and figures call it, which others may see."""

    name: str
    shown: str
    label: int | None
    scores: Array
    cosines: Array
    image: Image.Image

    @property
    def order(self) -> list[int]:
        """Classes, the decision first, then the runner-up."""
        return [int(i) for i in np.argsort(-self.scores, kind="stable")]


@dataclass
class Explanation:
    """weights (C,K): the merge attention. deciding: per class, symptom -> (images for which it
    decided, of these right). rescued: images right here and wrong by names. lost: the other way.
    words: of each learned context vector its nearest words with their Euclidean distances;
    n_words: among how many tokens of the backbone's vocabulary they were looked for."""

    cell: LoadedCell
    weights: Array
    mean_cosines: Array
    images: list[Explained] = field(default_factory=list)
    deciding: list[list[tuple[str, int, int]]] = field(default_factory=list)
    rescued: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    words: list[list[tuple[str, float]]] = field(default_factory=list)
    n_words: int = 0
    n_test: int = 0

    def embeddable(self, own_files: bool, asked: bool) -> bool:
        """Whether a page may hold the images themselves."""
        dataset = self.cell.data.dataset
        if dataset.name.startswith(NEVER_EMBEDDED):
            return False
        return asked or (dataset.sharing == "allowed" and not own_files)


def explain(
    folder: Path,
    paths: Sequence[Path],
    errors: int,
    key: str | None = None,
    include_paths: bool = False,
    roots: Sequence[str] = (),
) -> Explanation:
    """Explain image files, or the `errors` most confidently wrong test images, with one cell of a
    results folder: that of `key`, or the one that merges symptoms with the most shots.

    roots: `[DATASET=]DIR`, where the images of the run's tables are now.
    include_paths: names of files and images as they are, else pseudonyms under the folder's salt,
    unless the data may be shared anyway. Raises UsageError.
    """
    session = open_run(folder, roots)
    with Store(folder, readonly=True) as store:
        done = [k for k, status in store.status().items() if status == "ok" and k in session.cells]
        cells = [session.cells[k] for k in done if "symptoms" in session.cells[k].row.method.needs]
        # Parameters lie beside the cell of the classes that were trained on.
        cells = [c for c in cells if c.part is None]
        cells = [c for c in cells if key is None or c.key.startswith(key.lower())]
        cells.sort(key=lambda c: -(10**9 if c.shots is None else c.shots))
        found = None
        for cell in cells:
            if cell.further:
                continue  # its features are several backbones'
            trained = restore(session, cell, store.parameters(cell.key))
            with torch.no_grad():
                view = trained.method.symptom_view()
            if view is not None:
                found = cell, trained, view
                break
        if found is None:
            raise UsageError(
                f"the last run of {folder} has no finished cell"
                + (f" whose key begins with '{key}' and" if key else "")
                + " that merges symptoms (vip, symptoms-mean, symptoms-max); run "
                f"such a method with --out {folder} first"
            )
        cell, trained, (features, weights) = found
        kept = store.predictions(cell.key)
    runner = runner_of(session, cell)
    test = test_split(cell.data)
    x = runner.features.plain("test", test_rows(cell.data))
    scores = trained.score(x).cpu().double().numpy()
    if kept is not None and not np.allclose(kept.scores, scores, rtol=1e-3, atol=1e-3):
        raise UsageError(
            f"cell {cell.key[:12]} gives scores here that differ from its record; the device or "
            f"library versions may differ (`vipbench show` prints those of the record)"
        )
    cosines = cosines_of(x, features, weights)
    made = Explanation(cell, weights.cpu().double().numpy(), cosines.mean(0), n_test=len(test))
    labels = test.labels
    shown_ids: Sequence[str] = test.ids
    if not include_paths and cell.data.dataset.sharing != "allowed":
        names = Pseudonyms.of_folder(folder)
        shown_ids = names.many("image", cell.data.fingerprint, test.ids)
    _across(made, trained, x, scores, cosines, labels, shown_ids)
    made.words, made.n_words = nearest_words(trained)
    if paths:
        own = trained.inputs(paths)
        found_scores = trained.score(own).cpu().double().numpy()
        found_cosines = cosines_of(own, features, weights)
        for n, path in enumerate(paths):
            shown = path.name if include_paths else f"image {n + 1}"
            image = trained.open(path)
            made.images.append(
                Explained(path.name, shown, None, found_scores[n], found_cosines[n], image)
            )
    else:
        wrong = np.flatnonzero(scores.argmax(1) != labels)
        margin = scores.max(1) - scores[np.arange(len(labels)), labels]
        for i in wrong[np.argsort(-margin[wrong], kind="stable")][:errors].tolist():
            made.images.append(
                Explained(
                    test.ids[i], shown_ids[i], int(labels[i]), scores[i], cosines[i], test.open(i)
                )
            )
    return made


def cosines_of(x: torch.Tensor, features: torch.Tensor, weights: torch.Tensor) -> Array:
    """(N,D), (C,K,D) -> (N,C,K), NaN where a class was padded."""
    found = torch.einsum("nd,ckd->nck", F.normalize(x, dim=-1), F.normalize(features, dim=-1))
    found = found.masked_fill(weights == 0, torch.nan)
    return found.cpu().double().numpy()


def _across(
    made: Explanation,
    trained: Trained,
    x: torch.Tensor,
    scores: Array,
    cosines: Array,
    labels: npt.NDArray[np.int64],
    ids: Sequence[str],
) -> None:
    predicted = scores.argmax(1)
    # A symptom decides where, weighed, it is furthest above its own mean over the test set.
    above = np.nan_to_num(made.weights * (cosines - made.mean_cosines), nan=-np.inf)
    decides = above[np.arange(len(labels)), predicted].argmax(1)
    symptoms = made.cell.data.symptoms or ()
    for c, texts in enumerate(symptoms):
        rows = []
        for k, text in enumerate(texts):
            chosen = (predicted == c) & (decides == k)
            rows.append((text, int(chosen.sum()), int((chosen & (labels == c)).sum())))
        made.deciding.append(sorted(rows, key=lambda row: -row[1]))
    task = trained.method.task
    with torch.no_grad():
        named = task.cosine_logits(x, task.class_features(task.templates[:1])).argmax(1)
    names_right = named.cpu().numpy() == labels
    right = predicted == labels
    made.rescued = [ids[i] for i in np.flatnonzero(right & ~names_right).tolist()]
    made.lost = [ids[i] for i in np.flatnonzero(~right & names_right).tolist()]


def nearest_words(trained: Trained, count: int = 3) -> tuple[list[list[tuple[str, float]]], int]:
    """Of each learned context vector (parameter `context`, the first class's where each has its
    own) the nearest tokens of the backbone's vocabulary by Euclidean distance; and how many tokens
    were looked at."""
    context = dict(trained.method.named_parameters()).get("context")
    towers = trained.backbone.backbone
    if context is None or not isinstance(towers, Backbone):
        return [], 0
    known, rows = towers.vocabulary()
    if not known:
        return [], 0
    vectors = context.detach().reshape(-1, context.shape[-1])[: context.shape[-2]]
    distances = torch.cdist(vectors, rows.to(vectors), compute_mode="donot_use_mm_for_euclid_dist")
    best = distances.topk(min(count, len(known)), largest=False)
    found = [
        [(known[j], float(d)) for j, d in zip(index, values, strict=True)]
        for index, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return found, len(known)
