"""The image side of a backbone, whatever library built its tower.

Shapes: B images, H side of the square, T rows of a sequence, V width, D embedding width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vipbench.api import Tap, UnsupportedError
from vipbench.backbones.towers.frozen_vit import forward, plain_context, runs
from vipbench.backbones.towers.layers import Layer, changed_library, read_layers
from vipbench.backbones.towers.text import is_kind


class Parts(NamedTuple):
    """A plain vision transformer, taken apart.

    enter: pixels -> rows (B,T,V), positions added. before: what follows between entering and block
    0. blocks: its layers. leave: rows of the last block -> (B,D). width: V. first_row: whether
    `leave` reads the first row alone.
    """

    enter: Callable[[Tensor], Tensor]
    before: Callable[[Tensor], Tensor]
    blocks: Sequence[Any]
    leave: Callable[[Tensor], Tensor]
    width: int
    first_row: bool


class ImageSide:
    """A tower (B,3,H,H) -> (B,D).

    tower: the module, frozen and in evaluation mode when it is called. fresh: builds another one
    with new weights, from torch's generator. parts: of a plain vision transformer, which a tap
    needs; where they are known, features without a gradient take `forward`.
    """

    def __init__(
        self,
        tower: nn.Module,
        image_size: int,
        fresh: Callable[[], nn.Module],
        parts: Parts | None = None,
        why_no_tap: str = "",
    ) -> None:
        self.tower = tower
        self.image_size = image_size
        self._fresh = fresh
        self._why = why_no_tap or f"an image tower of type {type(tower).__name__}"
        self.layers: list[Layer] = []
        self.width: int | None = None
        if parts is not None:
            self._parts = parts
            try:
                self.layers, self.width = read_layers(parts.blocks, "vision"), parts.width
            except UnsupportedError as error:
                self._why = str(error)

    def __call__(self, pixels: Tensor, tap: Tap | None) -> Tensor:
        """(B,3,H,H) -> (B,D). Raises UnsupportedError for a tap on other towers."""
        if tap is None:
            if runs(self.layers) and plain_context(pixels):
                parts = self._parts
                with torch.no_grad():
                    x = parts.before(parts.enter(pixels))
                return forward(x, self.layers, parts.first_row, parts.leave)
            features: Tensor = self.tower(pixels)
            return features
        if not self.layers:
            raise UnsupportedError(
                f"{self._why} has no plain transformer blocks; this method needs a vision "
                "transformer"
            )
        x = self._parts.enter(pixels)
        own = x.shape[1]
        for layer in self.layers:
            x = tap.tokens("vision", layer.index, x)
            if layer.index == 0:
                x = self._parts.before(x)
            x = layer(x, None, tap)
        # Rows that the tap appended take part in attention, not in the pooling.
        left: Tensor = self._parts.leave(x[:, :own])
        return left

    def trainable_copy(self, pretrained: bool, device: torch.device) -> nn.Module:
        """See `ImageBackbone.trainable_copy`."""
        tower = copy.deepcopy(self.tower) if pretrained else self._fresh()
        return tower.to(device).train().requires_grad_(True)


def same(x: Tensor) -> Tensor:
    """x as it is."""
    return x


class Projected(nn.Module):
    """A vision model of the transformers library, its pooled output, and a projection."""

    def __init__(self, model: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.projection = projection or nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,3,H,H) -> (B,D)."""
        model: Any = self.model
        features: Tensor = self.projection(model(pixel_values=pixels).pooler_output)
        return features


class Patched(nn.Module):
    """A SigLIP 2 vision model that takes patches: of images (B,3,h·P,w·P), or of what
    `PatchesTransform` makes, (B,3,H+1,H), where images of one batch have grids of their own."""

    def __init__(self, model: nn.Module, patch: int) -> None:
        super().__init__()
        self.model, self.patch = model, patch

    def patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B,N,P·P·3), rows first, and their grid (B,2)."""
        p, side = self.patch, pixels.shape[-1]
        height, width = (pixels.shape[-2] // p, side // p)
        images = pixels[..., : height * p, :]
        x = images.unflatten(-1, (width, p)).unflatten(-3, (height, p))  # (B,3,h,p,w,p)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if packed(pixels):
            return x, pixels[:, 0, -1, :2].long()
        return x, torch.tensor([[height, width]], device=pixels.device).expand(len(x), 2)

    def images_by_grid(self, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (b,3,h·P,w·P) of one grid after the other, and the positions (b,) that they
        have in the batch."""
        x, grids = self.patches(pixels)
        for grid in sorted(set(map(tuple, grids.tolist()))):
            height, width = grid
            at = (grids == torch.tensor(grid, device=grids.device)).all(-1).nonzero().flatten()
            some = x[at, : height * width].unflatten(-1, (self.patch, self.patch, 3))
            some = some.unflatten(1, (height, width)).permute(0, 5, 1, 3, 2, 4)
            yield some.flatten(4).flatten(2, 3), at

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels -> (B,D)."""
        model: Any = self.model
        x, shapes = self.patches(pixels)
        mask = (torch.arange(x.shape[1], device=x.device) < shapes.prod(-1, keepdim=True)).long()
        features: Tensor = model(
            pixel_values=x, pixel_attention_mask=mask, spatial_shapes=shapes
        ).pooler_output
        return features


def packed(pixels: Tensor) -> bool:
    """Whether these are what `PatchesTransform` makes."""
    return pixels.shape[-2] == pixels.shape[-1] + 1


class PatchedSide(ImageSide):
    """Images of one batch may have grids of their own."""

    tower: Patched

    def __call__(self, pixels: Tensor, tap: Tap | None) -> Tensor:
        """See `ImageSide`; also (B,3,H+1,H) -> (B,D)."""
        if not packed(pixels):
            return super().__call__(pixels, tap)
        if tap is None:
            # The library's own pass masks what a grid leaves empty, whatever its batch mates are.
            features: Tensor = self.tower(pixels)
            return features
        parts = [
            (super(PatchedSide, self).__call__(some, tap), at)
            for some, at in self.tower.images_by_grid(pixels)
        ]
        order = torch.cat([at for _, at in parts]).argsort()
        return torch.cat([found for found, _ in parts])[order]


def side_of_transformers(
    model: Any, projection: nn.Module | None, fresh: Callable[[], nn.Module]
) -> ImageSide:
    """The image side of a vision model of the transformers library. Raises UsageError where its
    classes are not those of the library's tested versions."""
    try:
        return _side_of_transformers(model, projection, fresh)
    except AttributeError as error:
        raise changed_library(model, error) from error


def _side_of_transformers(
    model: Any, projection: nn.Module | None, fresh: Callable[[], nn.Module]
) -> ImageSide:
    config = model.config
    kind = config.model_type
    if kind in ("siglip2", "siglip2_vision_model"):
        patch = int(config.patch_size)
        size = math.isqrt(int(config.num_patches)) * patch
        patched = Patched(model, patch)
        parts = Parts(
            lambda pixels: model.embeddings(*patched.patches(pixels)),
            same,
            model.encoder.layers,
            lambda x: model.head(model.post_layernorm(x)),
            int(config.hidden_size),
            first_row=False,
        )
        return PatchedSide(patched, size, fresh, parts)
    tower = Projected(model, projection)
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    project = tower.projection
    width = int(getattr(config, "hidden_size", 0))
    if kind == "siglip_vision_model":
        parts = Parts(
            model.embeddings,
            same,
            model.encoder.layers,
            lambda x: project(model.head(model.post_layernorm(x))),
            width,
            first_row=False,
        )
    elif kind == "clip_vision_model":
        parts = Parts(
            model.embeddings,
            model.pre_layrnorm,
            model.encoder.layers,
            lambda x: project(model.post_layernorm(x[:, 0])),
            width,
            first_row=True,
        )
    elif kind == "vit":
        parts = Parts(
            model.embeddings,
            same,
            model.layers,
            lambda x: project(model.pooler(model.layernorm(x))),
            width,
            first_row=True,
        )
    else:
        return ImageSide(tower, int(size), fresh, None, f"an image tower of type '{kind}'")
    return ImageSide(tower, int(size), fresh, parts)


def side_of_timm(
    trunk: Any, head: nn.Module | None, image_size: int, tower: nn.Module, fresh: Any
) -> ImageSide:
    """The image side of a timm model, with open_clip's `head` behind it where there is one."""
    import timm

    if type(trunk) is not timm.models.vision_transformer.VisionTransformer or not trunk.blocks:
        return ImageSide(
            tower, image_size, fresh, None, f"an image tower of type {type(trunk).__name__}"
        )

    def enter(pixels: Tensor) -> Tensor:
        rows: Tensor = trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels)))
        return rows

    def leave(x: Tensor) -> Tensor:
        pooled: Tensor = trunk.forward_head(trunk.norm(x))
        return pooled if head is None else head(pooled)

    first = trunk.global_pool == "token" and trunk.attn_pool is None
    parts = Parts(enter, trunk.norm_pre, trunk.blocks, leave, int(trunk.embed_dim), first)
    return ImageSide(tower, image_size, fresh, parts)


def side_of_openclip(visual: Any, fresh: Callable[[], nn.Module] = nn.Identity) -> ImageSide:
    """The image side of any vision tower of open_clip. Raises UnsupportedError for one that is
    not for squares."""
    given = visual.image_size
    height, across = (given, given) if isinstance(given, int) else given
    if height != across:
        raise UnsupportedError(f"an image tower for {height}x{across} images; only squares work")
    size = int(height)
    if is_kind(visual, "TimmModel"):
        return side_of_timm(visual.trunk, visual.head, size, visual, fresh)
    tower = FirstOutput(visual)
    if not is_kind(visual, "VisionTransformer"):
        why = f"an image tower of type {type(visual).__name__}"
        return ImageSide(tower, size, fresh, None, why)

    def enter(pixels: Tensor) -> Tensor:
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
        rows: Tensor = x + visual.positional_embedding
        return rows

    def leave(x: Tensor) -> Tensor:
        pooled = visual._pool(x)[0]
        features: Tensor = pooled if visual.proj is None else pooled @ visual.proj
        return features

    width = int(visual.conv1.out_channels)
    first = visual.pool_type == "tok" and visual.attn_pool is None
    parts = Parts(enter, visual.ln_pre, visual.transformer.resblocks, leave, width, first)
    return ImageSide(tower, size, fresh, parts)


class FirstOutput(nn.Module):
    """A tower that may give its tokens beside the features; the features alone."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,3,H,H) -> (B,D)."""
        out = self.tower(pixels)
        features: Tensor = out[0] if isinstance(out, tuple) else out
        return features
