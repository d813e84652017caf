"""The CLIPs that open_clip can build: `tiny-clip` and `openclip:…`.

Nothing heavy is imported before a factory is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from vipbench.backbones._library import library
from vipbench.backbones.loading.hub import FORMS
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterBackbone, hookimpl

if TYPE_CHECKING:
    from vipbench.api import Backbone

openclip, openclip_files = library("openclip", FORMS)


@hookimpl
def register_backbones(register: RegisterBackbone) -> None:
    """The built-in CLIPs."""
    register(
        "tiny-clip",
        tiny_clip,
        help="a tiny CLIP that comes with vipbench, trained on synthetic images",
    )
    register(
        "openclip",
        openclip,
        help=f"CLIP models of open_clip: {FORMS}",
        files=openclip_files,
        known=[f"openclip:{name}/openai" for name in ("ViT-B-16", "ViT-L-14-336", "RN50x64")],
        suggest=suggest,
    )


def tiny_clip(argument: str | None) -> Backbone:
    """The tiny CLIP that comes with the package. Raises UsageError for an argument."""
    if argument is not None:
        raise UsageError(f"the backbone 'tiny-clip' takes no argument, but got ':{argument}'")
    from vipbench.backbones.loading.tiny_clip import load_tiny_clip
    from vipbench.backbones.towers.clip import ClipBackbone, clip_wordpieces
    from vipbench.backbones.towers.clip_modules import VisionTransformer

    model, facts, _ = load_tiny_clip()
    # Of the file's facts only these change a feature; the rest tells how it was trained.
    config = {key: facts[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}
    return ClipBackbone(
        model,
        name="tiny-clip",
        config=config,
        wordpieces=clip_wordpieces(),
        preprocess=facts["preprocess"],
        licence="Apache-2.0",
        trained_tokens=facts["token_ids"],
        fresh=partial(
            VisionTransformer, facts["vision_cfg"], facts["embed_dim"], facts["quick_gelu"]
        ),
    )


def suggest(word: str) -> Iterable[str]:
    """`openclip:ARCH/TAG` for the name of an architecture, as others spell it."""
    import open_clip

    asked = word.casefold().replace("/", "-").replace("_", "-")
    archs = [arch for arch in open_clip.list_models() if asked.startswith(arch.casefold())]
    for arch in sorted(archs, key=len)[-1:]:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        chosen = [tag for tag in tags if tag in ("openai", word.partition("/")[2])] or tags
        yield from (f"openclip:{arch}/{tag}" for tag in chosen[:1])
