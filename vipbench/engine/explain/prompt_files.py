"""Trained methods again: out of a results folder, or out of a prompt file.

A prompt file is a safetensors file whose metadata hold a card (JSON under "vipbench"): method,
hyperparameters, texts, backbone, and on what it was trained. Nothing in it is run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from vipbench import __version__
from vipbench.api import Backbone, ImageLike, Method, Split, Task, open_image
from vipbench.engine.evaluation.learned import fill
from vipbench.engine.evaluation.rebind import cannot_transfer
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.evaluation.scoring import ScoreError, checked_scores
from vipbench.engine.explain.prompt_card import FORMAT, VERSION, read_prompt_file
from vipbench.engine.features.features import ENCODE_BATCH, Features
from vipbench.engine.planning.cells import LoadedCell, impossible_pair
from vipbench.engine.planning.hparams import make_hparams
from vipbench.engine.planning.loading import LoadedBackbone, LoadedDataset, load_backbone
from vipbench.engine.seeding import cell_generator
from vipbench.engine.workers.session import Session
from vipbench.errors import UsageError
from vipbench.images import PixelRange
from vipbench.plugins.registry import Registry
from vipbench.results.records.record import PATH
from vipbench.results.sharing.privacy import needs_weights, public_backbone, scrub
from vipbench.runspec.run import SUITE_NAME, RunSpec
from vipbench.runspec.values import FeaturePrecision, labelled


@dataclass(frozen=True)
class Trained:
    """A method with what it learned, for the images of its backbone. tensors: what a prompt file
    holds of it. pixels: what values of more than 8 bits meant in the dataset it was trained on.
    precision: of image features.
    """

    method: Method
    backbone: LoadedBackbone
    class_names: tuple[str, ...]
    card: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    pixels: PixelRange | None = None
    precision: FeaturePrecision = "fp32"

    def open(self, path: Path) -> Image.Image:
        """An image file as those of its dataset are read. Raises ImageError."""
        return open_image(path, str(path), self.pixels)

    def require_single_images(self) -> None:
        """Raise UsageError where the method scores no single image."""
        if "test_images" in self.method.needs:
            raise UsageError(f"'{self.method.name}' scores only whole test sets, not single images")
        if "test_views" in self.method.needs:
            raise UsageError(
                f"'{self.method.name}' scores several views of an image; a prompt file has only one"
            )

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """Features or images (N,·), as the method takes them -> scores (N,C), on the CPU. Raises
        UsageError where what was learned gives none."""
        self.require_single_images()
        name, shape = self.method.name, (len(x), len(self.class_names))
        try:
            return checked_scores(self.method.predict(x), name, shape)
        except ScoreError as error:
            raise UsageError(f"{error}; its learned parameters are damaged") from None
        except Exception as error:
            raise _unfit(f"the learned parameters do not fit '{name}'", error) from error

    def inputs(self, images: Sequence[ImageLike], first: int = 0) -> Tensor:
        """Images as the method takes them, read and encoded as in a run. first: the number by which
        errors call the first of them, where it has no path. Raises ImageError."""
        names = tuple(
            str(image) if isinstance(image, str | PathLike) else f"number {place}"
            for place, image in enumerate(images, first)
        )
        split = Split(images, np.zeros(len(names), np.int64), names, pixels=self.pixels)
        towers = self.backbone.backbone
        features = Features(towers, {"test": split}, "", precision=self.precision)
        rows = [(place, 0) for place in range(len(names))]
        if self.method.inputs == "images":
            return features.images("test", rows, None)
        starts = range(0, len(rows), ENCODE_BATCH)
        batches = [rows[start : start + ENCODE_BATCH] for start in starts]
        return torch.cat([features.encode("test", batch, None) for batch in batches])


def open_run(folder: Path, images: Sequence[str] = ()) -> Session:
    """The cells of a results folder, planned as the run did. images: `[DATASET=]DIR`, where the
    images of its tables are now. Raises UsageError."""
    if not (folder / SUITE_NAME).is_file():
        raise UsageError(f"{folder} is not a results folder: it has no {SUITE_NAME}")
    session = Session(lambda event: None)
    spec = RunSpec.from_yaml(folder / SUITE_NAME)
    session.plan(spec.merge({"images": images or None}))
    return session


def runner_of(session: Session, cell: LoadedCell) -> GroupRunner:
    """What ran the cell."""
    return session.runners[cell.place]


def restore(session: Session, cell: LoadedCell, parameters: bytes | None) -> Trained:
    """The cell's method as it was after training. Raises UsageError."""
    method = runner_of(session, cell).try_build(cell)
    if cell.support is not None and parameters is None and _reads_support(method):
        raise UsageError(
            f"the store has no learned parameters of {cell.row.label} ({cell.key[:12]}); they "
            f"were too large to keep, or an older vipbench made the record"
        )
    try:
        fill(method, {} if parameters is None else load(parameters))
    except UsageError:
        raise
    except Exception as error:
        what = f"the learned parameters of {cell.key[:12]} do not fit '{method.name}'"
        raise _unfit(what, error) from error
    data = cell.data
    pixels = data.splits["train"].pixels
    precision = cell.protocol.feature_precision
    names = data.dataset.class_names
    return Trained(method, cell.backbone, names, {}, pixels=pixels, precision=precision)


def _reads_support(method: Method) -> bool:
    """Whether the support set may have changed the method: by a hook, or by training."""
    own, base = type(method), Method
    hooks = (own.prepare, own.fit, own.finish) != (base.prepare, base.fit, base.finish)
    return hooks or any(p.requires_grad for p in method.parameters())


def pack(
    cell: LoadedCell, parameters: bytes, metrics: Mapping[str, Any], private: bool = False
) -> bytes:
    """The prompt file of a finished cell. private: whether it may hold single images' features."""
    data, towers = cell.data, cell.backbone.backbone
    pixels = data.splits["train"].pixels
    card = {
        "format": FORMAT,
        "version": VERSION,
        "vipbench": __version__,
        "key": cell.key,
        "row": cell.row.label,
        "knowledge": data.knowledge,
        "method": cell.row.method.name,
        "method_revision": cell.row.method.revision,
        "hparams": dataclasses.asdict(cell.hparams),
        "info": dataclasses.asdict(cell.info),
        "seed": cell.seed,
        "class_names": data.dataset.class_names,
        "templates": data.dataset.templates,
        "symptoms": data.symptoms,
        "descriptions": data.descriptions,
        "backbone": public_backbone(labelled(cell.backbone.source)[1]),
        "backbone_fingerprint": towers.fingerprint,
        "backbone_licence": towers.licence,
        "dataset": data.dataset.name,
        "dataset_fingerprint": data.fingerprint,
        "dataset_licence": data.dataset.licence,
        "dataset_citation": scrub(data.dataset.citation),
        "caption": scrub(data.dataset.caption),
        "pixels": None if pixels is None else pixels.to_json(),
        "test_accuracy": metrics.get("accuracy"),
        "contains_patient_data": private,
    }
    packed: bytes = save(load(parameters), metadata={"vipbench": json.dumps(card)})
    return packed


def unpack(
    path: Path,
    registry: Registry,
    device: torch.device | str = "cpu",
    named: str | None = None,
) -> Trained:
    """The trained method of a prompt file. named: the backbone, where the file does not say where
    its weights are; they must be the same. Raises UsageError."""
    card, tensors = read_prompt_file(path)
    if card.method not in registry.methods:
        raise UsageError(
            f"{path.name} is of the method '{card.method}', which is neither built in nor "
            "installed; give its plugin folder with --plugins-dir DIR (in Python: plugins_dir)"
        )
    method, _ = registry.method(card.method)
    if method.revision != card.method_revision:
        raise UsageError(
            f"{path.name} was made by revision {card.method_revision} of '{method.name}', "
            f"but revision {method.revision} is installed, which gives other numbers"
        )
    source, fingerprint = card.backbone, card.backbone_fingerprint
    key: list[object] = [card.info.shots, card.seed]
    if card.version == 1:  # whose draws depended on the dataset
        key.insert(0, card.dataset_fingerprint)
    try:
        pixels = PixelRange.from_json(card.pixels)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path.name}: its card is incomplete or damaged ({error})") from None
    settings = make_hparams(method, card.hparams)
    if settings.backbones():
        raise UsageError(
            f"{path.name}: '{method.name}' reads features of further backbones, which prompt files "
            "do not hold"
        )
    if named is None and needs_weights(source):
        raise UsageError(
            f"{path.name} was trained on local weights, '{source}' with fingerprint "
            f"{fingerprint[:16]}; name yours: --backbone '{source.replace(PATH, 'PATH')}' with "
            "their path"
        )
    if named is None and public_backbone(source) != source:
        raise UsageError(
            f"{path.name} names weights by a path, '{source}', which is not allowed in a prompt "
            "file; give your weights with --backbone"
        )
    backbone = load_backbone(registry, source := named or source)
    towers = backbone.backbone
    if (found := towers.fingerprint) != fingerprint:
        raise UsageError(
            f"{path.name} was trained on other weights than those of '{source}' here: their "
            f"fingerprint is {found[:16]}, not {fingerprint[:16]}"
        )
    towers.to(device)
    info = dataclasses.replace(
        card.info,
        n_classes=len(card.class_names),
        dim=towers.dim,
        width=towers.width if isinstance(towers, Backbone) else 0,
    )
    texts = [len(of) for of in (card.symptoms, card.descriptions) if of is not None]
    if info != card.info or any(count != info.n_classes for count in texts):
        raise UsageError(
            f"{path.name}: its card is damaged: {card.info} and its texts do not fit its "
            f"{len(card.class_names)} classes and '{source}'"
        )
    try:
        task = Task(
            towers,
            card.class_names,
            card.templates,
            card.symptoms,
            info,
            cell_generator(*key),
            descriptions=card.descriptions,
        )
        built = method(task, settings).to(task.device)
        _require_all(built, tensors)
        fill(built, tensors)
    except UsageError:
        raise
    except Exception as error:
        raise _unfit(f"{path.name} does not fit '{method.name}'", error) from error
    return Trained(built, backbone, card.class_names, card.model_dump(mode="json"), tensors, pixels)


def _require_all(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError where a tensor is missing, or is none of what a method learns."""
    held = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    trained = [name for name, p in method.named_parameters() if p.requires_grad]
    if missing := [name for name in trained if name not in tensors]:
        raise UsageError(f"the prompt file lacks a learned tensor of '{method.name}': {missing[0]}")
    for name, value in tensors.items():
        own = held.get(name)
        if own is None:
            fits = name.isidentifier() and not hasattr(method, name)
        else:  # what is made while preparing may have had another shape, of nothing or one number
            fits = own.dtype == value.dtype and (own.shape == value.shape or own.numel() < 2)
        if not fits:
            raise UsageError(
                f"the prompt file holds {value.dtype} values {tuple(value.shape)} for {name!r}, "
                f"but '{method.name}' has no learned tensor with that name, type and shape"
            )


def _unfit(what: str, error: Exception) -> UsageError:
    return UsageError(
        f"{what}: {type(error).__name__}: {error}; expected the output of `vipbench prompts`"
    )


def split_inputs(trained: Trained, features: Features, split: str) -> Tensor:
    """A split of a dataset as the method takes it: (N,D) or (N,3,H,H)."""
    count = len(features.splits[split])
    if trained.method.inputs == "images":
        return features.images(split, [(i, 0) for i in range(count)], None)
    return features.plain(split, range(count))


def rebound(trained: Trained, data: LoadedDataset) -> Trained:
    """`trained` for the classes of `data`: the method built anew on their names and texts, with
    what was learned put in. Raises UsageError, with the reason, where something that was learned
    belongs to the classes that it was trained on, or where `data` lacks texts that the method
    reads."""
    method = trained.method
    kind, task = type(method), method.task
    names = data.dataset.class_names

    def make(given: Task) -> Method:
        return kind(given, method.hparams).to(given.device)

    reason = impossible_pair(kind, task.backbone, data)
    reason = reason or cannot_transfer(kind, method.hparams, task.info, task, make)
    if reason is None:
        info = dataclasses.replace(task.info, n_classes=len(names), dataset=data.dataset.name)
        there = dataclasses.replace(
            task,
            class_names=names,
            templates=data.dataset.templates,
            symptoms=data.symptoms,
            descriptions=data.descriptions,
            info=info,
        )
        fresh = make(there)
        held = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
        for name, value in trained.tensors.items():
            if name not in held or held[name].shape != value.shape:
                reason = f"'{method.name}' learned '{name}' of shape {tuple(value.shape)} for them"
                break
    if reason is not None:
        raise UsageError(
            f"the classes of '{data.dataset.name}' ({', '.join(names)}) are not those of the "
            f"prompt file ({', '.join(trained.class_names)}), and {reason}; classes are matched "
            "by name"
        )
    fill(fresh, trained.tensors)
    return dataclasses.replace(trained, method=fresh, class_names=names)
