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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from vipbench import __version__
from vipbench.api import CellInfo, ImageLike, Method, Split, Task, open_image
from vipbench.engine.evaluation.learned import fill
from vipbench.engine.evaluation.rebind import cannot_transfer
from vipbench.engine.evaluation.runner import GroupRunner
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
from vipbench.results.sharing.citations import credit
from vipbench.results.sharing.privacy import needs_weights, public_backbone, scrub
from vipbench.runspec.run import SUITE_NAME, RunSpec
from vipbench.runspec.values import FeaturePrecision, labelled

FORMAT = "vipbench-prompt"
VERSION = 2


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
        """Features or images (N,·), as the method takes them -> scores (N,C)."""
        self.require_single_images()
        return self.method.predict(x).float().cpu()

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
    if cell.support is not None and parameters is None:
        raise UsageError(
            f"the store has no learned parameters of {cell.row.label} ({cell.key[:12]}); they "
            f"were too large to keep, or an older vipbench made the record"
        )
    fill(method, {} if parameters is None else load(parameters))
    data = cell.data
    pixels = data.splits["train"].pixels
    precision = cell.protocol.feature_precision
    names = data.dataset.class_names
    return Trained(method, cell.backbone, names, {}, pixels=pixels, precision=precision)


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
    card, tensors = _read(path)
    try:
        if card["method"] not in registry.methods:
            raise UsageError(
                f"{path.name} is of the method '{card['method']}', which is neither built in nor "
                "installed; name the folder of its plugin: --plugins-dir DIR, in Python plugins_dir"
            )
        method, _ = registry.method(card["method"])
        if method.revision != card["method_revision"]:
            raise UsageError(
                f"{path.name} was made by revision {card['method_revision']} of '{method.name}', "
                f"here is revision {method.revision}: its numbers would differ"
            )
        names = tuple(map(str, card["class_names"]))
        info = CellInfo(**card["info"])
        hparams = dict(card["hparams"])
        key: list[object] = [info.shots, int(card["seed"])]
        if card["version"] == 1:  # whose draws depended on the dataset
            key.insert(0, card["dataset_fingerprint"])
        texts = {
            k: None if card[k] is None else tuple(tuple(map(str, row)) for row in card[k])
            for k in ("symptoms", "descriptions")
        }
        templates = tuple(map(str, card["templates"]))
        source, fingerprint = str(card["backbone"]), str(card["backbone_fingerprint"])
        pixels = PixelRange.from_json(card.get("pixels"))
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path.name}: its card is incomplete or damaged ({error})") from None
    settings = make_hparams(method, hparams)
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
    backbone = load_backbone(registry, source := named or source)
    if (found := backbone.backbone.fingerprint) != fingerprint:
        raise UsageError(
            f"{path.name} was trained on other weights than those of '{source}' here: their "
            f"fingerprint is {found[:16]}, not {fingerprint[:16]}"
        )
    backbone.backbone.to(device)
    task = Task(
        backbone.backbone,
        names,
        templates,
        texts["symptoms"],
        info,
        cell_generator(*key),
        descriptions=texts["descriptions"],
    )
    built = method(task, settings).to(task.device)
    fill(built, tensors)
    return Trained(built, backbone, names, card, tensors, pixels)


def card_of(path: Path) -> dict[str, Any]:
    """The card of a prompt file. Raises UsageError."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["vipbench"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if card["format"] != FORMAT or card["version"] not in (1, VERSION):
            raise ValueError("it has another format")
    except FileNotFoundError:
        raise UsageError(f"the prompt file '{path}' does not exist") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"'{path}' is not a prompt file ({error}); expected one that `vipbench prompts` wrote"
        ) from None
    return card, tensors


def card_page(card: Mapping[str, Any]) -> str:
    """A prompt file's card to read."""
    shots = card["info"]["shots"]
    lines = [
        f"# {card['row']} on {card['dataset']}",
        "",
        "Research only, not for clinical use.",
        "",
        f"- backbone: {card['backbone']} (licence: {card['backbone_licence']}), fingerprint "
        f"{card['backbone_fingerprint']}",
        f"- shots: {'full' if shots is None else shots}, seed {card['seed']}",
        f"- classes: {', '.join(card['class_names'])}",
        f"- accuracy on that dataset's test split: {card['test_accuracy']}",
        f"- data: {credit(card['dataset_citation'], card['dataset_licence'])} "
        f"{card['caption']}".rstrip(),
        f"- made with vipbench {card['vipbench']}, record {card['key']}",
    ]
    if card["contains_patient_data"]:
        lines.append(
            "- **contains-patient-data**: it may hold features of single images; keep it as you "
            "keep the images"
        )
    return "\n".join(lines) + "\n"


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
