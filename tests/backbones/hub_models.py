"""Small random checkpoints of the transformers library, written to a folder as its users would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers
from torch import nn

_SENTENCE = """a photo of the nevus melanoma asymmetric border blurry edges lung opacity red white
dark x ray image this is . , with and"""
WORDS = _SENTENCE.split()
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Every weight random, biases and normalisations too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            std = 0.2 if value.dim() < 2 else 0.15
            value.copy_(torch.randn(value.shape, generator=generator) * std + norm)
    return model.eval()


def save_clip(folder: Path, act: str = "quick_gelu", **text: Any) -> Any:
    """A CLIP with CLIP's own vocabulary, a context of 40 tokens."""
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3,
            "num_attention_heads": 4, "vocab_size": 49408, "max_position_embeddings": 40,
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
            "hidden_act": act, **text,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2,
            "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "hidden_act": act,
        },
        projection_dim=24,
    )  # fmt: skip
    model = randomise(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    bpe = open_clip.tokenizer.SimpleTokenizer()
    merges = [pair for pair, _ in sorted(bpe.bpe_ranks.items(), key=lambda item: item[1])]
    tokenizer = transformers.CLIPTokenizer(
        vocab=dict(bpe.encoder),
        merges=merges,
        unk_token="<end_of_text>",
        bos_token="<start_of_text>",
        eos_token="<end_of_text>",
        pad_token="<end_of_text>",
        model_max_length=40,
    )
    tokenizer.save_pretrained(folder)
    image_processor(
        folder,
        "CLIPImageProcessor",
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        do_center_crop=True,
        resample=3,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )
    return model


def save_siglip(folder: Path, two: bool = False) -> Any:
    """A SigLIP of 32 tokens; `two`: a SigLIP 2 that takes patches."""
    text = {
        "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 32,
        "projection_size": 48,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2,
        "num_attention_heads": 3, "patch_size": 8,
    }  # fmt: skip
    if two:
        config = transformers.Siglip2Config(
            text_config=text, vision_config={**vision, "num_patches": 16}
        )
        model = randomise(transformers.Siglip2Model(config))
        image_processor(folder, "Siglip2ImageProcessor", patch_size=8, max_num_patches=16,
                        resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    else:
        config = transformers.SiglipConfig(
            text_config=text, vision_config={**vision, "image_size": 32}
        )
        model = randomise(transformers.SiglipModel(config))
        image_processor(folder, "SiglipImageProcessor", size={"height": 32, "width": 32},
                        resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
    model.save_pretrained(folder)
    if two:
        save_gemma_like(folder)
    else:
        save_sentencepiece(folder)
    return model


def save_dual(folder: Path, vision: str = "vit", text: str = "bert") -> Any:
    """A vision-text dual encoder: a ViT or CLIP's image tower, and a BERT or RoBERTa."""
    sizes = {
        "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2,
        "num_attention_heads": 3, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    words = {
        "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 40,
    }  # fmt: skip
    kinds = {"vit": transformers.ViTConfig, "clip": transformers.CLIPVisionConfig}
    bert = transformers.BertConfig(**words, pad_token_id=0)
    if text == "roberta":
        bert = transformers.RobertaConfig(**words, pad_token_id=1)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        kinds[vision](**sizes), bert, projection_dim=24
    )
    model = randomise(transformers.VisionTextDualEncoderModel(config))
    model.save_pretrained(folder)
    pad = "[PAD]"
    save_words(folder, start="[CLS]", end="[SEP]", pad=pad, length=30, pad_first=text == "bert")
    image_processor(folder, "ViTImageProcessor", size={"height": 32, "width": 32},
                    resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    return model


def save_words(
    folder: Path,
    *,
    end: str,
    pad: str,
    length: int,
    start: str | None = None,
    pad_first: bool = True,
) -> Any:
    """A tokenizer of whole words: padding is token 0, or token 1."""
    special = [pad, "[UNK]"] if pad_first else ["[UNK]", pad]
    special += [token for token in (start, end) if token is not None]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}" if start else f"$A {end}",
        special_tokens=[(t, vocabulary[t]) for t in (start, end) if t is not None],
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token=pad,
        eos_token=end,
        sep_token=end,
        cls_token=start or end,
        padding_side="right",
        model_max_length=length,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_sentencepiece(folder: Path) -> None:
    """SigLIP's kind of tokenizer, on a vocabulary of its own."""
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), *WORDS] * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=50,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        minloglevel=2,
    )
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=32)
    tokenizer.save_pretrained(folder)


def save_gemma_like(folder: Path) -> None:
    """SigLIP 2's kind of tokenizer: byte pairs that tell a word after a space from another."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=90, special_tokens=special)
    inner.train_from_iterator([_SENTENCE.replace("\n", " ")] * 20, trainer)
    model = json.loads(inner.to_str())["model"]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        padding_side="right",
        model_max_length=32,
    )
    tokenizer.save_pretrained(folder)


def image_processor(folder: Path, kind: str, **settings: Any) -> None:
    getattr(transformers, kind)(**settings).save_pretrained(folder)


OWN_CODE = """
import timm, torch
from torch import nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel

class PairConfig(PretrainedConfig):
    model_type = "pair"

    def __init__(self, vision=None, text=None, dim=32, **more):
        self.vision, self.text, self.dim = vision, text, dim
        super().__init__(**more)

class Pair(PreTrainedModel):
    config_class = PairConfig

    def __init__(self, config):
        super().__init__(config)
        self.visual = timm.models.vision_transformer.VisionTransformer(**config.vision)
        width = config.vision["embed_dim"]
        self.visual_head = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, config.dim))
        self.text = BertModel(BertConfig(**config.text))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.post_init()
"""


def save_own_code(folder: Path, more: str = "") -> tuple[Any, Any]:
    """A model that code in its folder builds, in the form of KEEP: a timm tower with a head, a BERT
    with its pooler. more: further lines of that code. The model and its tokenizer."""
    (folder / "own.py").write_text(OWN_CODE + more)
    namespace: dict[str, Any] = {}
    exec(OWN_CODE, namespace)
    vision = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3,
              "num_classes": 0, "init_values": 1e-5}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 40}  # fmt: skip
    config = namespace["PairConfig"](vision=vision, text=text)
    model = randomise(namespace["Pair"](config))
    model.save_pretrained(folder)
    # As checkpoints of the form are: the library renamed the layer scales when it wrote them.
    weights = {k.replace(".gamma", ".weight"): v.clone() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    saved = json.loads(path.read_text())
    saved["auto_map"] = {"AutoConfig": "own.PairConfig", "AutoModel": "own.Pair"}
    path.write_text(json.dumps(saved))
    tokenizer = save_words(folder, start="[CLS]", end="[SEP]", pad="[PAD]", length=30)
    image_processor(folder, "ViTImageProcessor", size={"height": 32, "width": 32})
    return model, tokenizer
