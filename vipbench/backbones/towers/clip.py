"""A frozen CLIP of open_clip's classes behind the Backbone contract.

Shapes: B images of a batch, C classes, K texts of a class, D embedding width, W text-transformer
width, M learned context tokens, S tokens of a text, T rows of a sequence; `*L`, `*N` any leading
dimensions.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from vipbench import alive
from vipbench.api import Backbone, Prompts, Tap, TextError, Texts
from vipbench.backbones.towers.image import side_of_openclip
from vipbench.backbones.towers.layout import context_tokens, lay_out
from vipbench.backbones.towers.packing import Packed, pack
from vipbench.backbones.towers.preprocess import Preprocess, Transform, evaluation_transform
from vipbench.backbones.towers.text import TextTower, take_rows
from vipbench.backbones.towers.tokens import Wordpieces, embed_texts, readable_tokens


class ClipBackbone(Backbone):
    """An open_clip `CLIP` or `CustomTextCLIP`, frozen.

    model: fp32 weights. config: the model's configuration as open_clip keeps it (`embed_dim`,
    `vision_cfg`, `text_cfg`, `quick_gelu`). preprocess: see `evaluation_transform`; the size is
    the model's own. trained_tokens: those that training saw, where not all. revisions: of what
    read the files, for the fingerprint. fresh: builds another image tower with new weights; by
    default open_clip builds it.
    Raises UnsupportedError for a text tower that cannot take a learned context.

    weights_sha256: digest of all weights, the same whatever file they came from.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        config: Mapping[str, Any],
        wordpieces: Wordpieces,
        preprocess: Preprocess | None = None,
        licence: str = "unknown",
        citation: str = "",
        trained_tokens: Sequence[int] | None = None,
        revisions: Mapping[str, int] | None = None,
        fresh: Callable[[], nn.Module] | None = None,
    ) -> None:
        self._fresh = fresh or self._fresh_of_open_clip
        self._model = cast(Any, model.eval().requires_grad_(False))
        self._config = copy.deepcopy(dict(config))
        self._wordpieces, self._trained_tokens = wordpieces, trained_tokens
        self._text = TextTower(model)
        self._vision = side_of_openclip(self._model.visual)
        self._transform, self._preprocess = evaluation_transform(
            preprocess or {}, self._vision.image_size
        )
        self._training_precision: Literal["fp32", "bf16"] = "fp32"
        self._packings: Any = WeakIdKeyDictionary()
        self.name = name
        self.licence = licence
        self.citation = citation
        self.dim = int(self._config["embed_dim"])
        self.width = self._text.words.embedding_dim
        self.text_layers = len(self._text.blocks)
        self.context_length = len(self._text.positions)
        self.logit_scale = self._model.logit_scale.exp().item()
        self.image_size = self._vision.image_size
        self.vision_width = self._vision.width
        self.vision_layers = len(self._vision.layers)
        self.weights_sha256 = digest_weights(model)
        self.fingerprint = self._digest(revisions or {})

    @property
    def device(self) -> torch.device:
        """Where the towers live."""
        return self._text.positions.device

    def to(self, device: torch.device | str) -> None:
        """Move the towers."""
        self._model.to(device)
        self._text.read_blocks()
        self.training_precision = self._training_precision

    @property
    def training_precision(self) -> Literal["fp32", "bf16"]:
        """ "bf16": where a gradient is asked for, the text tower's projections run in bf16 from
        then on; the residual stream, features without a gradient and images stay fp32."""
        return self._training_precision

    @training_precision.setter
    def training_precision(self, precision: Literal["fp32", "bf16"]) -> None:
        self._training_precision = precision
        if precision == "bf16":
            self._text.prepare_half()

    def preprocess(self, image: Image.Image) -> Tensor:
        """The checkpoint's evaluation transform: RGB image -> (3,H,H) float32."""
        return self._transform(image)

    def preprocess_alone(self) -> Transform:
        """See `ImageBackbone.preprocess_alone`."""
        return self._transform

    def encode_image(self, pixels: Tensor, tap: Tap | None = None) -> Tensor:
        """(B,3,H,H) -> (B,D). Raises UnsupportedError for a tap where the tower is not a plain
        vision transformer."""
        return self._vision(pixels, tap)

    def embed(self, texts: Texts) -> Prompts:
        """See `Backbone.embed`."""
        return embed_texts(texts, self._wordpieces, self.context_length).to(self.device)

    def embed_words(self, words: str) -> Tensor:
        """Token embeddings (n, W) of `words`. Raises TextError where there are none."""
        ids = self._wordpieces.encode(words)
        if not ids:
            raise TextError(f"the words '{words}' contain no token to start a context from")
        return self._text.words.weight[torch.tensor(ids, device=self.device)].clone()

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """See `Backbone.unknown_words`."""
        return self._wordpieces.unknown_words(text)

    def vocabulary(self) -> tuple[list[str], Tensor]:
        """See `Backbone.vocabulary`."""
        return readable_tokens(self._wordpieces, self._text.words.weight, self._trained_tokens)

    def encode_text(
        self, prompts: Prompts, context: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """See `Backbone.encode_text`. Without `context`, the gaps of `prompts` stay empty."""
        m = context_tokens(prompts, context, self.width, self.context_length, self._wordpieces)
        if context is not None and m == 0:
            context = None
        if tap is not None or not self._text.cut:
            return self._plain_text(prompts, context, tap)
        if context is None:
            packed = self._packed(prompts, 0, torch.Size())
            return self._text.encode(packed, None, self.memory_budget).squeeze(0)
        lead = context.shape[:-2]
        shape = torch.broadcast_shapes(prompts.shape, lead)
        # Leading dimensions that only the contexts have repeat the same texts: many contexts
        # over one packing.
        texts = [*[1] * (len(shape) - len(prompts.shape)), *prompts.shape]
        outer = next((i for i, size in enumerate(texts) if size != 1), len(texts))
        outer = max(0, outer - len(shape) + len(lead))
        packed = self._packed(prompts, m, lead[outer:])
        contexts = context.reshape(-1, lead[outer:].numel() * m, self.width)
        half = self.training_precision == "bf16"
        features = self._text.encode(packed, contexts, self.memory_budget, half)
        return features.reshape(*shape, self.dim)

    def _plain_text(self, prompts: Prompts, context: Tensor | None, tap: Tap | None) -> Tensor:
        """Each text as a sequence of its own: what a tap looks into, and bidirectional towers."""
        m = 0 if context is None else context.shape[-2]
        if not self._text.cut:
            # Such a tower also looks at the padding, or takes its last row.
            padding = self.context_length - m - prompts.tokens.shape[-1]
            tokens = F.pad(prompts.tokens, (0, padding), value=self._wordpieces.pad)
            prompts = dataclasses.replace(prompts, tokens=tokens)
        layout = lay_out(prompts, m)
        rows, source = self._text.words(prompts.tokens), layout.source
        if context is not None:
            shape = torch.broadcast_shapes(prompts.shape, context.shape[:-2])
            rows = torch.cat([t.expand(*shape, *t.shape[-2:]) for t in (rows, context)], -2)
            source = source.expand(*shape, -1)
        if self._text.cut:
            source = source[..., : layout.rows]
        x = take_rows(rows, source) + self._text.positions[: source.shape[-1]]
        return self._text.plain(x, self._text.pooled(layout.end), tap)

    def _packed(self, prompts: Prompts, m: int, contexts: torch.Size) -> Packed:
        """The packing of `prompts`, made once for as long as they live."""
        packings: dict[Any, Packed] = self._packings.setdefault(prompts.tokens, {})
        key = (m, contexts)
        if key not in packings:
            limit = min(256, max(64, self.width // 2))
            packings[key] = pack(prompts, m, contexts, limit)
        return packings[key]

    def trainable_copy(self, pretrained: bool = True) -> nn.Module:
        """The image tower (B,3,H,H) -> (B,D), to be trained.

        With `pretrained=False` it is initialised from torch's global generator: fork and seed
        that around the call.
        """
        tower = copy.deepcopy(self._model.visual) if pretrained else self._fresh()
        trainable: nn.Module = tower.to(self.device).train().requires_grad_(True)
        return trainable

    def _fresh_of_open_clip(self) -> nn.Module:
        import open_clip

        # The text side is thrown away, so it is built as small as can be.
        text = {"context_length": 1, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
        tower: nn.Module = open_clip.CLIP(
            embed_dim=self.dim,
            vision_cfg={**self._config["vision_cfg"], "timm_model_pretrained": False},
            text_cfg=text,
            quick_gelu=bool(self._config.get("quick_gelu", False)),
        ).visual
        return tower

    def _digest(self, revisions: Mapping[str, int]) -> str:
        """SHA-256 over everything that a feature depends on."""
        facts = {
            "config": self._config,
            "preprocess": self._preprocess,
            "wordpieces": self._wordpieces.identity,
            "weights": self.weights_sha256,
            **({"revisions": dict(revisions)} if revisions else {}),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def digest_weights(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a state dict: the same for the same
    weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        alive.sign()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def clip_wordpieces(tokenizer: Any = None, options: str = "{}") -> Wordpieces:
    """CLIP's byte-pair encoding, as open_clip ships it.

    tokenizer: an `open_clip.tokenizer.SimpleTokenizer` made with `options`; by default plain.
    """
    bpe = tokenizer or _plain_tokenizer()
    return Wordpieces(
        encode=bpe.encode,
        decode=lambda ids: bpe.decode([i for i in ids if i not in bpe.all_special_ids]).strip(),
        start=(bpe.sot_token_id,),
        end=(bpe.eot_token_id,),
        pad=0,
        identity=f"clip-bpe {options}",
    )


@cache
def _plain_tokenizer() -> Any:
    """The `SimpleTokenizer()` that open_clip's module of tokenizers makes for itself: reading its
    merges takes as long as all else that tiny-clip loads."""
    module: Any = sys.modules.get("open_clip.tokenizer")
    if module is None:
        # The module by itself: importing the package takes seconds.
        package: Any = importlib.util.find_spec("open_clip")
        file = Path(package.submodule_search_locations[0]) / "tokenizer.py"
        spec: Any = importlib.util.spec_from_file_location("_vipbench_open_clip_tokenizer", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found = getattr(module, "_tokenizer", None)
    return found if type(found) is module.SimpleTokenizer else module.SimpleTokenizer()
