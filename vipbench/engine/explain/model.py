"""Trained models for scripts and notebooks: class names, scores and symptoms of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vipbench import trust
from vipbench.engine.explain.explain import cosines_of
from vipbench.engine.explain.prompt_files import Trained, restore, unpack
from vipbench.engine.features.features import ENCODE_BATCH
from vipbench.engine.rerun import spec_of
from vipbench.engine.workers.plan import what_changed
from vipbench.engine.workers.session import Session
from vipbench.errors import UsageError
from vipbench.images import IMAGE_SUFFIXES, ImageError, ImageLike
from vipbench.plugins.registry import load_registry
from vipbench.results.records.record import Record
from vipbench.results.store.store import Store
from vipbench.runspec.run import SUITE_NAME, RunSpec

if TYPE_CHECKING:
    from pandas import DataFrame

Images: TypeAlias = "ImageLike | Iterable[ImageLike]"


class Model:
    """A trained method with its backbone, for images. Research only, not for clinical use.

    Images are paths, PIL images, uint8 arrays (H,W), (H,W,1) or (H,W,3), a list of these, an array
    (N,H,W,3), or a folder, whose image files, also in its subfolders, are taken in the order of
    their paths. They are read as those of the dataset that the method was trained on.

    name: the table row and where it was trained. class_names: C names, in the order of the scores.
    Every method raises UsageError for what is no image, is missing or damaged.
    """

    def __init__(self, trained: Trained, name: str) -> None:
        trained.require_single_images()
        self._trained = trained
        self.name = name
        self.class_names: tuple[str, ...] = trained.class_names

    def __repr__(self) -> str:
        return f"Model({self.name}; classes: {', '.join(self.class_names)})"

    def predict(self, images: Images) -> npt.NDArray[np.str_]:
        """The most likely class of each image: N class names."""
        best = self._scores(images)[1].argmax(1)
        return np.array([self.class_names[i] for i in best], np.str_)

    def scores(self, images: Images) -> DataFrame:
        """N rows, a column per class: the method's scores (logits, no probabilities), those of
        which a run computes its metrics. The index has each image's path, or its position."""
        import pandas as pd

        names, scores = self._scores(images)
        return pd.DataFrame(
            scores, index=pd.Index(names, name="image"), columns=[*self.class_names]
        )

    def explain(self, image: ImageLike) -> DataFrame:
        """What each symptom adds to the score of its class for one image: a row per symptom, the
        highest class and the highest share first.

        `class`, `symptom`, `cosine` of image and symptom, `weight` of the symptom in its class (the
        merge attention; sums to 1), and `share`: weight * cosine divided by the sum of its absolute
        values over the class. Raises UsageError for a method that merges no symptoms.
        """
        import pandas as pd

        trained = self._trained
        with torch.no_grad():
            view = trained.method.symptom_view()
        if view is None or (symptoms := trained.method.task.symptoms) is None:
            raise UsageError(
                f"'{trained.method.name}' merges no symptoms, so its scores cannot be explained "
                f"by them; use vip, symptoms-mean or symptoms-max"
            )
        (x,) = self._inputs([image])
        scores = trained.score(x)[0]
        cosines, weights = cosines_of(x, *view)[0], view[1].cpu().double().numpy()
        rows: list[tuple[Any, ...]] = []
        for c in scores.argsort(descending=True).tolist():
            shares = np.nan_to_num(cosines[c] * weights[c])
            shares = shares / max(np.abs(shares).sum(), 1e-12)
            known = range(len(symptoms[c]))
            for k in sorted(known, key=lambda k: -shares[k]):
                values = (cosines[c][k], weights[c][k], shares[k])
                rows.append((self.class_names[c], symptoms[c][k], *map(float, values)))
        return pd.DataFrame(rows, columns=["class", "symptom", "cosine", "weight", "share"])

    def _scores(self, images: Images) -> tuple[list[str | int], npt.NDArray[np.float32]]:
        named = [*_named(images)]
        if not named:
            raise UsageError("there is no image to classify: the list is empty")
        batches = self._inputs([image for _, image in named])
        scores = torch.cat([self._trained.score(x) for x in batches])
        return [name for name, _ in named], scores.numpy()

    def _inputs(self, images: Sequence[ImageLike]) -> Iterator[torch.Tensor]:
        for start in range(0, len(images), ENCODE_BATCH):
            try:
                yield self._trained.inputs(images[start : start + ENCODE_BATCH], start)
            except ImageError as error:
                raise UsageError(str(error)) from None


def open_model(folder: Path, record: Record, suite: RunSpec | None = None) -> Model:
    """The method of a finished cell of a results folder, as it was after training. Plugins of the
    run are imported into this process. suite: where data, texts and plugins are, by default that of
    the folder's last run. Raises UsageError."""
    name = record.cell.words()
    kept = record.provenance.get("parameters") or {}
    if kept.get("left_out"):
        raise UsageError(
            f"{name}: its learned parameters were too large to keep "
            f"({', '.join(kept['left_out'])}); "
            "run the cell again to score other images"
        )
    with trust.refusals():
        spec = spec_of(record, suite or RunSpec.from_yaml(folder / SUITE_NAME), folder)
        session = Session(lambda event: None)
        session.plan(spec)
        planned = session.cells.get(record.key)
        if planned is None:
            there = [c for c in session.cells.values() if c.id == record.cell]
            why = what_changed(record, there[0].parts) if there else "the suite has no such cell"
            raise UsageError(
                f"{name}: the model of record {record.key[:12]} cannot be rebuilt from "
                f"{folder / SUITE_NAME}, the folder's last run: {why}"
            )
        if planned.further:
            raise UsageError(
                f"{name}: it reads features of several backbones; a model can have only one"
            )
        if planned.part is not None and planned.support is not None:
            raise UsageError(
                f"{name}: it is tested on other classes than it was trained on; choose the cell of "
                f"'{planned.data.dataset.name}'"
            )
        with Store(folder, readonly=True) as store:
            return Model(restore(session, planned, store.parameters(record.key)), name)


def load_model(
    file: str | os.PathLike[str],
    backbone: str | None = None,
    plugins_dir: str | os.PathLike[str] | None = None,
) -> Model:
    """The trained method of a prompt file, which `vipbench prompts` writes.

    backbone: its backbone, where the weights are a local file. plugins_dir: the folder of the
    plugin that its method is of. A file runs no code: what it needs of a plugin or of a model's
    repository has to be named here, or trusted before. Raises UsageError.
    """
    if plugins_dir is not None:
        plugins_dir = Path(plugins_dir)
        trust.name(plugins_dir)
    if backbone is not None:
        trust.name(backbone)
    with trust.refusals():
        trained = unpack(Path(file), load_registry(plugins_dir), named=backbone)
    card = trained.card
    return Model(trained, f"{card['row']} on {card['dataset']}, prompt file {Path(file).name}")


def _named(images: Images) -> Iterator[tuple[str | int, ImageLike]]:
    """Each image with what tables call it."""
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        if path.is_dir():
            yield from ((str(file), file) for file in _files(path))
        else:
            yield str(images), path
    elif isinstance(images, Image.Image):
        yield 0, images
    elif isinstance(images, np.ndarray):
        several = images if images.ndim == 4 else [images]
        yield from enumerate(several)
    elif isinstance(images, Iterable) and not isinstance(images, dict | bytes | torch.Tensor):
        for place, image in enumerate(images):
            if isinstance(image, str | os.PathLike):
                yield from _named(image)
            elif isinstance(image, Image.Image | np.ndarray):
                yield place, image
            else:
                raise _unfit(image)
    else:
        raise _unfit(images)


def _files(folder: Path) -> list[Path]:
    found = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not found:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(f"the folder '{folder}' holds no image file; looked for {endings}")
    return found


def _unfit(value: Any) -> UsageError:
    kind = type(value)
    return UsageError(
        f"expected images (paths, PIL images, uint8 arrays (H,W) or (H,W,3), or a folder), got a "
        f"{kind.__module__}.{kind.__qualname__}"
    )
