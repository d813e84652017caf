"""Image towers without a text side, of the timm library: `timm:…`.

Nothing heavy is imported before the factory is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterBackbone, hookimpl

if TYPE_CHECKING:
    from vipbench.api import ImageBackbone, Needed

FORMS = (
    "timm:NAME or timm:NAME.TAG (weights that timm knows, such as timm:resnet50), timm:NAME@PATH "
    "(weights in a file), timm:NAME+random (no weights: for supervised training from scratch)"
)


@hookimpl
def register_backbones(register: RegisterBackbone) -> None:
    """ResNets, vision transformers and all else that timm builds."""
    register(
        "timm",
        timm,
        help=f"image towers of timm, without a text side: {FORMS}",
        files=timm_files,
        suggest=suggest,
    )


def timm(argument: str | None) -> ImageBackbone:
    """An image tower of timm.

    Raises UsageError for what is unknown, cannot be fetched, or does not fit.
    """
    if not argument:
        raise UsageError(f"the backbone 'timm' needs to know which model: {FORMS}")
    from vipbench.backbones.loading.timm import load_timm

    return load_timm(argument)


def suggest(word: str) -> Iterable[str]:
    """`timm:NAME` for the name of a model."""
    import timm

    return [f"timm:{word}"] if timm.is_model(word.partition(".")[0]) else []


def timm_files(argument: str | None) -> Iterable[Needed]:
    """What `timm` needs on the disk. Raises UsageError."""
    if not argument:
        raise UsageError(f"the backbone 'timm' needs to know which model: {FORMS}")
    from vipbench.backbones.loading import timm as _timm

    return _timm.timm_files(argument)
