"""The scores of a cell for every test image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipbench.results.records.record import Record, RecordError


@dataclass(frozen=True, eq=False)
class Predictions:
    """The scores of a cell for every test image.

    ids: N image ids. groups: N patient or lesion ids, or None. labels: (N,) int64 class indices.
    scores: (N,C) float32, as the method gave them (logits, or numbers like probabilities).
    Raises RecordError on wrong lengths or shapes, labels outside 0…C-1, scores not finite.
    """

    ids: list[str]
    groups: list[str] | None
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        labels, scores = np.asarray(self.labels), np.asarray(self.scores)
        if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
            raise RecordError(f"scores have shape {scores.shape}; expected (N, C), N >= 1, C >= 2")
        n, c = scores.shape
        if scores.dtype.kind != "f" or not np.isfinite(scores).all():
            raise RecordError("scores are not all finite floating-point numbers")
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise RecordError(
                f"labels have shape {labels.shape}, type {labels.dtype}; expected ({n},) integers"
            )
        if labels.min() < 0 or labels.max() >= c:
            raise RecordError(f"a label lies outside 0…{c - 1}")
        ids, groups = list(self.ids), None if self.groups is None else list(self.groups)
        for name, values in (("ids", ids), ("groups", groups)):
            if values is not None and (
                len(values) != n or not all(isinstance(v, str) for v in values)
            ):
                raise RecordError(f"{name} are not {n} texts, one for each row of scores")
        small = scores.astype(np.float32)
        if not np.isfinite(small).all():
            raise RecordError("scores are too large for float32")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "scores", small)

    @property
    def prediction_hash(self) -> str:
        """SHA-256 over what was predicted: their number, the number of classes, and of each test
        image, in order, the class with the highest score (the first of equal ones).

        Scores of one cell may differ in their last bits between two runs, see docs/reliability.md;
        this does not, unless an image's two highest scores are that close.
        """
        n, c = self.scores.shape
        chosen = self.scores.argmax(axis=1).astype("<i8")
        return hashlib.sha256(f"{n} {c}\n".encode() + chosen.tobytes()).hexdigest()


def check_together(record: Record, predictions: Predictions) -> None:
    """Raise RecordError unless the predictions are of the record's own test set."""
    c = predictions.scores.shape[1]
    if not record.ok:
        raise RecordError("a failed cell's record comes without predictions")
    counts = np.bincount(predictions.labels, minlength=c).tolist()
    if counts != record.data.test_counts:
        raise RecordError(
            f"predictions hold {counts} images per class, the record says {record.data.test_counts}"
        )
