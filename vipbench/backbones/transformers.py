"""CLIP-like models of the transformers library: `transformers:…`."""

from __future__ import annotations

from vipbench.backbones._library import library
from vipbench.hookspecs import RegisterBackbone, hookimpl

FORMS = (
    "transformers:ORG/NAME (from the Hub or its cache), transformers:FOLDER (what save_pretrained "
    "wrote); either with +remote-code behind it where the model's own code is to be run"
)

factory, files = library("transformers", FORMS)


@hookimpl
def register_backbones(register: RegisterBackbone) -> None:
    """CLIP, SigLIP, SigLIP 2, and pairs with a BERT text tower."""
    register(
        "transformers",
        factory,
        help=f"CLIP, SigLIP and CLIP-like pairs of the transformers library: {FORMS}",
        files=files,
    )
