"""Image towers without a text side, of the timm library: `timm:…`."""

from __future__ import annotations

from collections.abc import Iterable

from vipbench.backbones._library import library
from vipbench.hookspecs import RegisterBackbone, hookimpl

FORMS = (
    "timm:NAME or timm:NAME.TAG (weights that timm knows, such as timm:resnet50), timm:NAME@PATH "
    "(weights in a file), timm:NAME+random (no weights: for supervised training from scratch)"
)

factory, files = library("timm", FORMS)


@hookimpl
def register_backbones(register: RegisterBackbone) -> None:
    """ResNets, vision transformers and all else that timm builds."""
    register(
        "timm",
        factory,
        help=f"image towers of timm, without a text side: {FORMS}",
        files=files,
        suggest=suggest,
    )


def suggest(word: str) -> Iterable[str]:
    """`timm:NAME` for the name of a model."""
    import timm

    return [f"timm:{word}"] if timm.is_model(word.partition(".")[0]) else []
