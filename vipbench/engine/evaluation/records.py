"""Records of cells: everything that made a number, or why there is none."""

from __future__ import annotations

import dataclasses
import platform
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vipbench import __version__
from vipbench.api import ImageError
from vipbench.engine.machine import kind_name
from vipbench.engine.planning.cells import LoadedCell, metric_revisions
from vipbench.engine.planning.loading import LoadedBackbone, LoadedDataset
from vipbench.plugins.registry import provenance
from vipbench.results import Record


def base_record(cell: LoadedCell) -> dict[str, Any]:
    """What a record says whether the cell succeeded or not."""
    data, row, backbone = cell.tested, cell.row, cell.backbone
    recipe = None
    if cell.support is not None:
        # A plugin's; what it raises becomes the cell's error when it is run, see `error_record`.
        with suppress(Exception):
            recipe = cell.hparams.recipe(cell.info)
    support = cell.support
    return {
        "key": cell.key,
        "cell": cell.id.model_dump(),
        "hparams": dataclasses.asdict(cell.hparams),
        "recipe": None if recipe is None else dataclasses.asdict(recipe),
        "protocol": {
            k: v
            for k, v in dataclasses.asdict(cell.protocol).items()
            # As older records have it: stated where it is not the test split.
            if (k, v) not in (("score_on", "test"), ("feature_precision", "fp32"))
        }
        | dict(cell.protocol_fields),
        "data": {
            "class_names": list(data.dataset.class_names),
            "train_counts": data.counts("train"),
            "val_counts": data.counts("val"),
            "test_counts": data.counts("test"),
            "n_support": 0 if support is None else len(support.train),
            "n_val": 0 if support is None or support.val is None else len(support.val),
            **_support_counts(cell),
            **_validation_groups(cell),
            "fingerprint": data.fingerprint,
            "licence": data.dataset.licence,
            "caption": data.dataset.caption,
            "notes": list(data.notes),
            **_fold(data),
            "symptoms_sha256": data.symptoms_sha256,
            "knowledge": data.knowledge,
            "symptom_images_seen": data.texts_saw(row.method.needs),
            **({"class_texts": list(cell.class_texts)} if cell.class_texts else {}),
            "texts_from_files": [kind for kind in data.from_files if row.reads(kind)],
            **({"text_sets": dict(data.chosen)} if data.chosen else {}),
        },
        "provenance": {
            "vipbench": __version__,
            "python": platform.python_version(),
            **{
                name: _version(name)
                for name in ("torch", "open_clip_torch", "transformers", "timm")
            },
            "device": _device_name(backbone.backbone.device),
            **_cuda(backbone.backbone.device, cell.protocol.feature_precision),
            "method": {
                **provenance(row.plugin),
                "revision": row.method.revision,
                "kind": row.method.kind,
                "needs": sorted(row.method.needs),
                "bibtex": row.method.bibtex,
            },
            "backbone": _weights(backbone),
            **_further(cell),
            "dataset": {
                **provenance(data.plugin),
                "source": data.source,
                "citation": data.dataset.citation,
            },
            **_trained_on(cell),
            "metric_revisions": metric_revisions(),
            "key_parts": dict(cell.parts),
        },
        "notes": list(cell.notes),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _fold(data: LoadedDataset) -> dict[str, Any]:
    """Which fold was tested, of how many."""
    return {} if data.fold is None else {"fold": data.fold.name, "folds": data.fold.count}


def _support_counts(cell: LoadedCell) -> dict[str, Any]:
    """Of other protocols than few-shot: the drawn images of each class that is trained on."""
    if not cell.protocol_fields or cell.support is None:
        return {}
    labels = cell.data.splits["train"].labels[cell.support.train]
    counts = np.bincount(labels, minlength=cell.info.n_classes)
    return {"support_counts": [int(n) for n in counts]}


def _validation_groups(cell: LoadedCell) -> dict[str, Any]:
    """Where shots are groups: how many of them the validation images are, class by class."""
    support, split = cell.support, cell.data.splits["val"]
    if cell.protocol.shots_unit != "group" or support is None or support.val is None:
        return {}
    if split.groups is None:
        return {}
    return {"n_val_groups": len({(int(split.labels[i]), split.groups[i]) for i in support.val})}


def _further(cell: LoadedCell) -> dict[str, Any]:
    """The backbones that the method reads beside its own."""
    return {"backbones": [*map(_weights, cell.further)]} if cell.further else {}


def _weights(loaded: LoadedBackbone) -> dict[str, Any]:
    backbone = loaded.backbone
    return {
        **provenance(loaded.plugin),
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "licence": backbone.licence,
        "citation": backbone.citation,
    }


def _trained_on(cell: LoadedCell) -> dict[str, Any]:
    """Where that is another dataset, or other classes, than what is tested."""
    if cell.part is None:
        return {}
    data = cell.data
    return {
        "trained_on": {
            **provenance(data.plugin),
            "dataset": data.dataset.name,
            "source": data.source,
            "class_names": list(data.dataset.class_names),
            "fingerprint": data.fingerprint,
            "licence": data.dataset.licence,
            "citation": data.dataset.citation,
        }
    }


def error_record(cell: LoadedCell, error: BaseException) -> Record:
    """The record of a cell that failed: it names plugin and file, or the dataset of an image."""
    plugin = cell.owner
    where = f"plugin '{plugin.name}' ({plugin.file.name})"
    if isinstance(error, ImageError):
        data = cell.tested if error.tested else cell.data
        plugin, where = data.plugin, f"dataset '{data.dataset.name}'"
    elif plugin is not cell.row.plugin:
        where += f", on which method '{cell.row.method.name}' ran"
    failure = {
        "type": type(error).__name__,
        "message": f"{where}: {error}"[:4000],
        "traceback": "".join(traceback.format_exception(error))[-8000:],
        "plugin": plugin.name,
        "file": plugin.file.name,
    }
    return Record.of({**base_record(cell), "status": "error", "error": failure})


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return kind_name(device.type)


def _cuda(device: torch.device, features: str) -> dict[str, str]:
    """Of a GPU what may change the last bits of a number beside its model. tf32: where products of
    fp32 tensors round their factors to TF32, which the engine alone decides."""
    if device.type != "cuda":
        return {}
    driver = Path("/sys/module/nvidia/version")
    return {
        "cuda": str(torch.version.cuda),
        "driver": driver.read_text().strip() if driver.exists() else "unknown",
        "tf32": "features" if features == "tf32" else "off",
    }


@lru_cache
def _version(distribution: str) -> str:
    return version(distribution)
