"""A plain CLIP, module by module, with the names that open_clip gives them.

tiny-clip is made of these, so that a run on it does not import open_clip, whose torchvision alone
takes as long as torch. Weights, their names and order, initial values and results equal those of
`open_clip.CLIP` bit for bit. Shapes: B images or texts, T rows of a sequence, W width of a tower,
D embedding width.

Source: Radford et al., 2021, "Learning Transferable Visual Models From Natural Language
Supervision", sections 2.4 and 2.5.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TEMPERATURE = 0.07


class LayerNorm(nn.LayerNorm):
    """Normalisation that keeps the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """x (*,W) -> (*,W)."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIPs."""

    def forward(self, x: Tensor) -> Tensor:
        """x -> x·sigmoid(1.702 x)."""
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """Attention and a two-layer network, normalised before, each with a residual."""

    def __init__(self, width: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = nn.Identity()
        self.ln_2 = LayerNorm(width)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            c_fc=nn.Linear(width, 4 * width),
            gelu=QuickGELU() if quick_gelu else nn.GELU(),
            c_proj=nn.Linear(4 * width, width),
        )
        self.mlp = nn.Sequential(layers)
        self.ls_2 = nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """x (B,T,W), attn_mask (T,T), what is added to attention -> (B,T,W)."""
        h = self.ln_1(x)
        mask = None if attn_mask is None else attn_mask.to(h.dtype)
        x = x + self.ls_1(self.attn(h, h, h, need_weights=False, attn_mask=mask)[0])
        mixed: Tensor = x + self.ls_2(self.mlp(self.ln_2(x)))
        return mixed


class Transformer(nn.Module):
    """Blocks one after another."""

    def __init__(self, width: int, layers: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        blocks = [ResidualAttentionBlock(width, heads, quick_gelu) for _ in range(layers)]
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """x (B,T,W) -> (B,T,W); attn_mask: see ResidualAttentionBlock."""
        for block in self.resblocks:
            x = block(x, attn_mask=attn_mask)
        return x


class VisionTransformer(nn.Module):
    """The image tower; initial values come from torch's global generator.

    config: `image_size`, `patch_size`, `width`, `layers` and `head_width` of `CLIPVisionCfg`.
    """

    pool_type = "tok"
    attn_pool = None

    def __init__(self, config: Mapping[str, int], dim: int, quick_gelu: bool) -> None:
        super().__init__()
        width, patch = config["width"], config["patch_size"]
        self.image_size = (config["image_size"], config["image_size"])
        rows = (config["image_size"] // patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(rows, width))
        self.ln_pre = LayerNorm(width)
        heads = width // config["head_width"]
        self.transformer = Transformer(width, config["layers"], heads, quick_gelu)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,3,H,H) -> (B,D)."""
        x = self.conv1(pixels).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.view(1, 1, -1).expand(len(x), -1, -1).to(x.dtype)
        x = torch.cat([first, x], 1) + self.positional_embedding.to(x.dtype)
        x = self.transformer(self.ln_pre(x))
        return self._pool(x)[0] @ self.proj

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the last block -> the first one, and the others, normalised."""
        x = self.ln_post(x)
        return x[:, 0], x[:, 1:]


class CLIP(nn.Module):
    """Both towers; initial values come from torch's global generator.

    config: `embed_dim`, `quick_gelu`, `vision_cfg` (see VisionTransformer), and of `CLIPTextCfg`
    `context_length`, `vocab_size`, `width`, `heads` and `layers` as `text_cfg`.
    """

    text_pool_type = "argmax"
    attn_mask: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim, quick_gelu = config["embed_dim"], config["quick_gelu"]
        self.visual = VisionTransformer(config["vision_cfg"], dim, quick_gelu)
        text = config["text_cfg"]
        width, self.context_length = text["width"], text["context_length"]
        self.vocab_size = text["vocab_size"]
        token_embedding = nn.Embedding(self.vocab_size, width)
        self.transformer = Transformer(width, text["layers"], text["heads"], quick_gelu)
        self.token_embedding = token_embedding
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, dim))
        mask = torch.full((self.context_length, self.context_length), float("-inf")).triu(1)
        self.register_buffer("attn_mask", mask, persistent=False)
        self._draw_text_tower()
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / _TEMPERATURE))

    def _draw_text_tower(self) -> None:
        width, blocks = self.ln_final.normalized_shape[0], self.transformer.resblocks
        inner = width**-0.5
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in blocks:
            layers: Any = block
            nn.init.normal_(layers.attn.in_proj_weight, std=inner)
            nn.init.normal_(layers.attn.out_proj.weight, std=inner * (2 * len(blocks)) ** -0.5)
            nn.init.normal_(layers.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(layers.mlp.c_proj.weight, std=inner * (2 * len(blocks)) ** -0.5)
        nn.init.normal_(self.text_projection, std=inner)

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """(B,3,H,H) -> (B,D)."""
        features: Tensor = self.visual(pixels)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """tokens (B,T) int64, T the context length -> (B,D)."""
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))
        # The end token is the highest of the vocabulary.
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(-1)] @ self.text_projection
        return F.normalize(x, dim=-1) if normalize else x
