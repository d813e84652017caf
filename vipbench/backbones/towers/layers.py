"""One transformer layer of any library's tower, written once, open to a tap.

Towers of the transformers library and of timm name their parts differently; `read_layer` finds
them. Shapes: T rows of a sequence, W width of the tower, H heads; `*` any leading dimensions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import requires
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vipbench.api import Tap, Tower, UnsupportedError
from vipbench.backbones.towers.linear import constant_linear, through
from vipbench.backbones.towers.masks import repeated
from vipbench.backbones.towers.text import Function, attend
from vipbench.backbones.towers.vmap import folded
from vipbench.errors import UsageError


@dataclass(frozen=True)
class Layer:
    """Attention and a two-layer network, each with a residual and a normalisation.

    post_norm: normalisation behind the residual (BERT) instead of before attention and network.
    scale1, scale2: layer scales, where the tower has them. packed: (*,W) -> (*,3W), q, k and v of
    one product, where the tower has them so.
    """

    tower: Tower
    index: int
    heads: int
    q: Function
    k: Function
    v: Function
    o: Function
    fc1: Function
    act: Function
    fc2: Function
    norm1: Function
    norm2: Function
    post_norm: bool = False
    scale1: Function | None = None
    scale2: Function | None = None
    packed: Function | None = None

    def __call__(self, x: Tensor, seen: Tensor | None, tap: Tap | None) -> Tensor:
        """x (*,T,W) -> (*,T,W).

        seen: what is added to attention (see `_masks`), (T,T), or (n,1 or T,T) for the n
        sequences that * counts; None: nothing.
        """
        if self.post_norm:
            x = self.norm1(x + self._attention(x, seen, tap))
            return self.norm2(x + self._network(x, tap))
        x = x + _scaled(self.scale1, self._attention(self.norm1(x), seen, tap))
        return x + _scaled(self.scale2, self._network(self.norm2(x), tap))

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (*,T,W), (*,T,W) each; for plain tensors, no torch.func."""
        if self.packed is None:
            q, k, v = (through(linear, x) for linear in (self.q, self.k, self.v))
            return q, k, v
        q, k, v = self.packed(x).chunk(3, -1)
        return q, k, v

    def _attention(self, x: Tensor, seen: Tensor | None, tap: Tap | None) -> Tensor:
        q, k, v = (self._apply_linear(tap, name, getattr(self, name), x) for name in "qkv")
        flat = [t.reshape(-1, *t.shape[-2:]) for t in (q, k, v)]
        mixed = folded(partial(_attend, self.heads, seen), *flat).reshape(v.shape)
        return self._apply_linear(tap, "o", self.o, mixed)

    def _network(self, x: Tensor, tap: Tap | None) -> Tensor:
        return self._apply_linear(
            tap, "fc2", self.fc2, self.act(self._apply_linear(tap, "fc1", self.fc1, x))
        )

    def _apply_linear(self, tap: Tap | None, name: str, linear: Function, x: Tensor) -> Tensor:
        y = linear(x)
        return y if tap is None else tap.linear(self.tower, self.index, name, x, y)


def _attend(heads: int, seen: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if seen is not None and seen.dim() == 3:
        # Folding lays the batches of many cells one behind the other.
        seen = repeated(seen, len(q) // len(seen))
    return attend(q, k, v, heads, seen)


def _scaled(scale: Function | None, x: Tensor) -> Tensor:
    return x if scale is None else scale(x)


def read_layers(blocks: Sequence[Any], tower: Tower) -> list[Layer]:
    """The layers of a tower. Raises UnsupportedError for a kind that is not known."""
    return [_read(block, tower, i) for i, block in enumerate(blocks)]


def _read(block: Any, tower: Tower, index: int) -> Layer:
    kind = type(block).__name__
    for names, reader in (
        (("CLIPEncoderLayer", "SiglipEncoderLayer", "Siglip2EncoderLayer"), _clip_parts),
        (("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer"), _bert_parts),
        (("ViTLayer",), _vit_parts),
        (("Block",), _timm_parts),
        (("ResidualAttentionBlock",), _openclip_parts),
    ):
        if kind in names:
            try:
                return Layer(tower, index, **reader(block))
            except AttributeError as error:
                raise changed_library(block, error) from error
    raise UnsupportedError(
        f"block {index} of the {tower} tower is a {kind}; known are those of CLIP, SigLIP, BERT, "
        "RoBERTa and plain vision transformers"
    )


def changed_library(part: object, error: AttributeError) -> UsageError:
    """What to raise where a library's class lacks an attribute that its tested versions have."""
    kind = type(part)
    library = kind.__module__.partition(".")[0]
    version = getattr(sys.modules.get(library), "__version__", "of unknown version")
    tested = [r.partition(";")[0] for r in requires("vipbench") or () if r.startswith(library)]
    hint = f"; install {' '.join(tested)}" if tested else ""
    return UsageError(f"{kind.__name__} of {library} {version} is not as expected: {error}{hint}")


def _clip_parts(block: Any) -> dict[str, Any]:
    attn, mlp = block.self_attn, block.mlp
    return {
        **{"heads": attn.num_heads, "q": attn.q_proj, "k": attn.k_proj, "v": attn.v_proj},
        **{"o": attn.out_proj, "fc1": mlp.fc1, "act": mlp.activation_fn, "fc2": mlp.fc2},
        **{"norm1": block.layer_norm1, "norm2": block.layer_norm2},
    }


def _bert_parts(block: Any) -> dict[str, Any]:
    attn, out = block.attention.self, block.attention.output
    inner = block.intermediate
    return {
        **{"heads": attn.num_attention_heads, "q": attn.query, "k": attn.key, "v": attn.value},
        **{"o": out.dense, "fc1": inner.dense, "act": inner.intermediate_act_fn},
        **{"fc2": block.output.dense, "norm1": out.LayerNorm, "norm2": block.output.LayerNorm},
        "post_norm": True,
    }


def _vit_parts(block: Any) -> dict[str, Any]:
    attn, mlp = block.attention, block.mlp
    return {
        **{"heads": attn.num_attention_heads, "q": attn.q_proj, "k": attn.k_proj},
        **{"v": attn.v_proj, "o": attn.o_proj},
        **{"fc1": mlp.fc1, "act": mlp.activation_fn, "fc2": mlp.fc2},
        **{"norm1": block.layernorm_before, "norm2": block.layernorm_after},
    }


def _timm_parts(block: Any) -> dict[str, Any]:
    attn, mlp = block.attn, block.mlp
    if type(attn).__name__ != "Attention":
        raise UnsupportedError(f"an image tower with {type(attn).__name__}")
    extra = [
        n for n in ("q_norm", "k_norm", "norm") if not isinstance(getattr(attn, n), nn.Identity)
    ]
    extra += ["norm"] if not isinstance(mlp.norm, nn.Identity) else []
    if extra or attn.gate is not None:
        raise UnsupportedError(
            "its blocks normalise or gate within attention, which taps do not know"
        )
    return {
        **{"heads": attn.num_heads, **_packed_qkv(lambda: attn.qkv.weight, lambda: attn.qkv.bias)},
        **{"o": attn.proj},
        **{"fc1": mlp.fc1, "act": mlp.act, "fc2": mlp.fc2},
        **{"norm1": block.norm1, "norm2": block.norm2, "scale1": block.ls1, "scale2": block.ls2},
    }


def _openclip_parts(block: Any) -> dict[str, Any]:
    attn, mlp = block.attn, block.mlp
    return {
        **{"heads": attn.num_heads, "o": attn.out_proj},
        **_packed_qkv(lambda: attn.in_proj_weight, lambda: attn.in_proj_bias),
        **{"fc1": mlp.c_fc, "act": mlp.gelu, "fc2": mlp.c_proj},
        **{"norm1": block.ln_1, "norm2": block.ln_2, "scale1": block.ls_1, "scale2": block.ls_2},
    }


def _packed_qkv(
    weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]
) -> dict[str, Function]:
    """q, k and v of one packed projection, read at every call: the module may move."""

    def part(i: int, x: Tensor) -> Tensor:
        b = bias()
        return F.linear(x, weight().chunk(3)[i], None if b is None else b.chunk(3)[i])

    def whole(x: Tensor) -> Tensor:
        return constant_linear(x, weight(), bias())

    return {**{name: partial(part, i) for i, name in enumerate("qkv")}, "packed": whole}
