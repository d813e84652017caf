"""The contracts that plugins see. See the submodules for the shape glossary."""

from vipbench.api.backbone import (
    Backbone,
    ImageBackbone,
    NoTap,
    Prompts,
    Tap,
    Text,
    TextError,
    Texts,
    Tower,
    UnsupportedError,
)
from vipbench.api.dataset import SPLITS, DataError, Dataset, Split, fingerprint_splits
from vipbench.api.method import Batch, Labelled, Method, Support, has_own_fit, pads_batches
from vipbench.api.recipe import CellInfo, Choice, HParams, Published, Range, Recipe, Views
from vipbench.api.task import Task
from vipbench.fetching import HubFile, Needed, WebFile
from vipbench.images import ImageError, ImageLike, open_image

__all__ = [
    "SPLITS",
    "Backbone",
    "Batch",
    "CellInfo",
    "Choice",
    "DataError",
    "Dataset",
    "HParams",
    "HubFile",
    "ImageBackbone",
    "ImageError",
    "ImageLike",
    "Labelled",
    "Method",
    "Needed",
    "NoTap",
    "Prompts",
    "Published",
    "Range",
    "Recipe",
    "Split",
    "Support",
    "Tap",
    "Task",
    "Text",
    "TextError",
    "Texts",
    "Tower",
    "UnsupportedError",
    "Views",
    "WebFile",
    "fingerprint_splits",
    "has_own_fit",
    "open_image",
    "pads_batches",
]
