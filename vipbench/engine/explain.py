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

from vipbench.api import Backbone, open_image
from vipbench.engine.planning import PlanCell
from vipbench.engine.trained import Trained, open_run, restore, runner_of
from vipbench.errors import UsageError
from vipbench.results.store import Store

Array = npt.NDArray[np.float64]
NEVER_EMBEDDED = ("derm7pt",)


@dataclass(frozen=True)
class Explained:
    """One image. scores (C,): the method's. cosines (C,K): image and symptom, NaN for padding.
    label: None for an image that is in no test set."""

    name: str
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
    words: of each learned context vector its nearest words with their Euclidean distances."""

    cell: PlanCell
    weights: Array
    mean_cosines: Array
    images: list[Explained] = field(default_factory=list)
    deciding: list[list[tuple[str, int, int]]] = field(default_factory=list)
    rescued: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    words: list[list[tuple[str, float]]] = field(default_factory=list)
    n_test: int = 0

    def embeddable(self, own_files: bool, asked: bool) -> bool:
        """Whether a page may hold the images themselves."""
        dataset = self.cell.data.dataset
        if dataset.name.startswith(NEVER_EMBEDDED):
            return False
        return asked or (dataset.sharing == "allowed" and not own_files)


def explain(
    folder: Path, paths: Sequence[Path], errors: int, key: str | None = None
) -> Explanation:
    """Explain image files, or the `errors` most confidently wrong test images, with one cell of a
    results folder: that of `key`, or the one that merges symptoms with the most shots. Raises
    UsageError."""
    session = open_run(folder)
    with Store(folder, readonly=True) as store:
        done = [k for k, status in store.status().items() if status == "ok" and k in session.cells]
        cells = [session.cells[k] for k in done if "symptoms" in session.cells[k].row.method.needs]
        cells = [c for c in cells if key is None or c.key.startswith(key.lower())]
        cells.sort(key=lambda c: -(10**9 if c.shots is None else c.shots))
        found = None
        for cell in cells:
            trained = restore(session, cell, store.parameters(cell.key))
            with torch.no_grad():
                view = trained.method.symptom_view()
            if view is not None:
                found = cell, trained, view
                break
        if found is None:
            raise UsageError(
                f"{folder} holds no finished cell"
                + (f" whose key begins with '{key}' and" if key else "")
                + " that merges symptoms (vip, symptoms-mean, symptoms-max)"
            )
        cell, trained, (features, weights) = found
        kept = store.predictions(cell.key)
    runner = runner_of(session, cell)
    test = cell.data.splits["test"]
    x = runner.features.plain("test", range(len(test)))
    scores = trained.score(x).double().numpy()
    if kept is not None and not np.allclose(kept.scores, scores, rtol=1e-3, atol=1e-3):
        raise UsageError(
            f"cell {cell.key[:12]} gives other scores here than its record holds; another device "
            "or other library versions? `vipbench show` names those of the record"
        )
    cosines = _cosines(x, features, weights)
    made = Explanation(cell, weights.double().cpu().numpy(), cosines.mean(0), n_test=len(test))
    labels = test.labels
    _across(made, trained, x, scores, cosines, labels, test.ids)
    made.words = nearest_words(trained, cell)
    if paths:
        own = trained.inputs(paths)
        pairs = zip(paths, trained.score(own).double().numpy(),
                    _cosines(own, features, weights), strict=True)  # fmt: skip
        made.images = [Explained(p.name, None, s, c, open_image(p, str(p))) for p, s, c in pairs]
    else:
        wrong = np.flatnonzero(scores.argmax(1) != labels)
        margin = scores.max(1) - scores[np.arange(len(labels)), labels]
        for i in wrong[np.argsort(-margin[wrong], kind="stable")][:errors].tolist():
            made.images.append(
                Explained(test.ids[i], int(labels[i]), scores[i], cosines[i], test.open(i))
            )
    return made


def _cosines(x: torch.Tensor, features: torch.Tensor, weights: torch.Tensor) -> Array:
    """(N,D), (C,K,D) -> (N,C,K), NaN where a class was padded."""
    found = torch.einsum("nd,ckd->nck", F.normalize(x, dim=-1), F.normalize(features, dim=-1))
    found = found.masked_fill(weights == 0, torch.nan)
    return found.double().cpu().numpy()


def _across(
    made: Explanation, trained: Trained, x: torch.Tensor, scores: Array, cosines: Array,
    labels: npt.NDArray[np.int64], ids: Sequence[str],
) -> None:  # fmt: skip
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


def nearest_words(
    trained: Trained, cell: PlanCell, count: int = 3
) -> list[list[tuple[str, float]]]:
    """Of each learned context vector (parameter `context`, the first class's where each has its
    own) the nearest words among those of the dataset's texts, by Euclidean distance."""
    context = dict(trained.method.named_parameters()).get("context")
    towers = trained.backbone.backbone
    if context is None or not isinstance(towers, Backbone):
        return []
    dataset = cell.data.dataset
    texts = [*dataset.class_names, *dataset.templates]
    for bound in (cell.data.symptoms, cell.data.descriptions):
        texts += [text for row in bound or () for text in row]
    words = sorted({w for text in texts for w in "".join(
        c if c.isalpha() else " " for c in text.lower()).split()})  # fmt: skip
    rows = {}
    for word in words:
        embedded = towers.embed_words(word)
        if len(embedded) == 1:  # a word of one token; of longer ones there is no single vector
            rows[word] = embedded[0]
    if not rows:
        return []
    known = list(rows)
    vectors = context.detach().reshape(-1, context.shape[-1])[: context.shape[-2]]
    distances = torch.cdist(vectors, torch.stack([rows[w] for w in known]))
    best = distances.topk(min(count, len(known)), largest=False)
    return [
        [(known[j], float(d)) for j, d in zip(index, values, strict=True)]
        for index, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
