"""CLIP-like models of the transformers library: `transformers:…`.

Nothing heavy is imported before the factory is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterBackbone, hookimpl

if TYPE_CHECKING:
    from vipbench.api import Backbone, Needed

FORMS = (
    "transformers:ORG/NAME (from the Hub or its cache), transformers:FOLDER (what save_pretrained "
    "wrote); either with +remote-code behind it where the model's own code is to be run"
)


@hookimpl
def register_backbones(register: RegisterBackbone) -> None:
    """CLIP, SigLIP, SigLIP 2, and pairs with a BERT text tower."""
    register(
        "transformers",
        transformers,
        help=f"CLIP, SigLIP and CLIP-like pairs of the transformers library: {FORMS}",
        files=transformers_files,
    )


def transformers(argument: str | None) -> Backbone:
    """A model of the Hub or of a local folder.

    Raises UsageError for what is unknown, cannot be fetched, or does not fit.
    """
    if not argument:
        raise UsageError(f"the backbone 'transformers' needs to know which model: {FORMS}")
    from vipbench.backbones.loading.transformers import load_transformers

    return load_transformers(argument)


def transformers_files(argument: str | None) -> Iterable[Needed]:
    """What `transformers` needs on the disk. Raises UsageError."""
    if not argument:
        raise UsageError(f"the backbone 'transformers' needs to know which model: {FORMS}")
    from vipbench.backbones.loading import transformers as _transformers

    return _transformers.transformers_files(argument)
