"""Train tiny-clip from nothing, in one command:

    python benchmarks/train_tiny_clip.py

Writes tiny_clip.safetensors and tiny_clip.json into the package (or `--out FOLDER`). With
`--evaluate` nothing is trained: what the shipped model does on synthderm is printed.

The pairs are drawn by the painter of the `synthderm` dataset with attributes drawn
independently of one another, from streams that the dataset never uses: none of the classes, let
alone their images or names, is in the training data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save
from tiny_clip_captions import FACTS, caption, facts_of
from tiny_clip_story import measure, to_pixels
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, normalize

from vipbench.backbones.loading.tiny_clip import (
    CONFIG,
    WEIGHTS,
    assemble,
    build,
    disassemble,
    draw_embedding,
    load_tiny_clip,
)
from vipbench.backbones.towers.clip_modules import CLIP
from vipbench.datasets._render import Attributes, Stream, paint, random_attributes

PACKAGE = Path(__file__).resolve().parent.parent / "vipbench" / "backbones"
PAIRS_KEY = 77_000  # first number of the pairs' streams; the dataset's streams start with 1, 2, …

BASE: dict[str, Any] = {
    "name": "tiny-clip",
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
    "quick_gelu": False,
    "tokenizer": "CLIP byte-pair encoding (open_clip.SimpleTokenizer)",
    "preprocess": {
        "size": 64,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
    "embedding_seed": 20240901,
    "licence": "Apache-2.0",
}


def pairs(count: int, seed: int) -> tuple[np.ndarray, list[Attributes]]:
    """`count` images (N,64,64,3) uint8 and what is on them."""
    images, drawn = [], []
    for i in range(count):
        rng = Stream([PAIRS_KEY, seed, i])
        attributes = random_attributes(rng)
        images.append(paint(attributes, rng))
        drawn.append(attributes)
    return np.stack(images), drawn


def bits(facts: list[tuple[str, str]]) -> list[float]:
    """One 0 or 1 for each of FACTS."""
    return [float(f in facts) for f in FACTS]


def captions(drawn: list[Attributes], seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Tokens (N,77) and said facts (N,F) of one caption an image, drawn anew each epoch."""
    texts, said = [], []
    for i, attributes in enumerate(drawn):
        text, facts = caption(attributes, Stream([PAIRS_KEY + 1, seed, epoch, i]))
        texts.append(text)
        said.append(bits(facts))
    return open_clip.SimpleTokenizer()(texts), torch.tensor(said)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(B,3,H,H): quarter turns and mirror images, which change no attribute, and some crops."""
    b = len(pixels)
    turn = torch.randint(4, (b,), generator=generator) * (math.pi / 2)
    mirror = torch.randint(2, (b,), generator=generator) * 2.0 - 1.0
    # Crops to 30-100 % of the area for a third: few-shot methods train on such views, too.
    crop = torch.rand(b, generator=generator) < 0.33
    zoom = torch.where(crop, (0.3 + 0.7 * torch.rand(b, generator=generator)).sqrt(), 1.0)
    shift = (torch.rand(b, 2, generator=generator) * 2.0 - 1.0) * (1.0 - zoom)[:, None]
    cos, sin = turn.cos().round(), turn.sin().round()
    rows = [
        torch.stack((zoom * cos * mirror, -zoom * sin, shift[:, 0]), -1),
        torch.stack((zoom * sin * mirror, zoom * cos, shift[:, 1]), -1),
    ]
    grid = affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def encode_text(model: CLIP, rows: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """Features (B,D) of texts (B,S), S <= 77, given as places in `rows` (n,W).

    noise: (m,W) vectors that stand between the start token and the rest, as a context to be
    learned will: a large CLIP bears those, a small one has to be shown them.
    What open_clip does, less the padding: the tower is causal, so nothing behind the end token
    can change the end token's output.
    """
    end = index.argmax(-1) + len(noise)
    x = rows[index]
    x = torch.cat([x[:, :1], noise.expand(len(x), -1, -1), x[:, 1:]], 1)
    length = x.shape[1]
    x = x + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    return x[torch.arange(len(x)), end] @ model.text_projection


def context_noise(width: int, generator: torch.Generator) -> Tensor:
    """(m,W): for half of the batches nothing, else 1 to 16 vectors of some size."""
    m = int(torch.randint(1, 17, (1,), generator=generator))
    std = 0.02 * 4 ** float(torch.rand(1, generator=generator))
    noise = std * torch.randn(m, width, generator=generator)
    return noise if bool(torch.rand(1, generator=generator) < 0.5) else noise[:0]


def contrast(logits: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric loss of (B,B) logits, true (B,B) saying where a caption fits an image.

    A caption that happens to be true of another image of the batch is no negative for it.
    """
    own = torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(true & ~own, float("-inf"))
    target = torch.arange(len(logits))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def batches(
    count: int, size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """`steps` pairs (epoch, places (B,)), every epoch in a new order."""
    per_epoch = count // size
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(count, generator=generator)
        place = step % per_epoch * size
        yield step // per_epoch, order[place : place + size]


def train(args: argparse.Namespace) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is to be stored: tensors and configuration (without the digest)."""
    start = time.monotonic()
    generator = torch.Generator().manual_seed(args.seed)
    images, drawn = pairs(args.pairs, args.seed)
    true = torch.tensor([bits(facts_of(a)) for a in drawn])  # (N,F)
    pixels = to_pixels(images, BASE["preprocess"])
    per_epoch = args.pairs // args.batch
    texts = [captions(drawn, args.seed, e) for e in range(math.ceil(args.steps / per_epoch))]
    known = torch.cat([tokens for tokens, _ in texts]).unique()
    known = known[known != 0]  # padding: never seen by the end token
    config = BASE | {"token_ids": known.tolist(), "seed": args.seed}
    # Read by a test: other numbers from the same seed would be another model in silence.
    config["embedding_check"] = draw_embedding(config)[-1, :4].tolist()
    print(f"{args.pairs} pairs, {len(known)} tokens, {time.monotonic() - start:.0f} s", flush=True)

    model = build(config, seed=args.seed).train()
    rows = nn.Parameter(draw_embedding(config)[known])
    plain = [p for p in model.parameters() if p.ndim < 2] + [rows]
    decayed = [
        p for n, p in model.named_parameters() if p.ndim >= 2 and not n.endswith("embedding.weight")
    ]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    warmup = min(50, args.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * s / args.steps)) + 0.01),
    )
    for step, (epoch, places) in enumerate(batches(args.pairs, args.batch, args.steps, generator)):
        tokens, said = texts[epoch][0][places], texts[epoch][1][places]
        tokens = tokens[:, : int(tokens.argmax(-1).max()) + 1].contiguous()
        # Padding falls on place 0, any token: it stands behind the end.
        index = torch.searchsorted(known, tokens).clamp(max=len(known) - 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            image = model.encode_image(augment(pixels[places], generator))
        image = normalize(image.float(), dim=-1)
        noise = context_noise(rows.shape[1], generator)
        text = normalize(encode_text(model, rows, index, noise), dim=-1)
        fits = (1.0 - true[places]) @ said.T == 0  # (B,B)
        loss = contrast(model.logit_scale.exp() * image @ text.T, fits)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*decayed, *plain], 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100.0))
        if step % 25 == 0 or step == args.steps - 1:
            gone = time.monotonic() - start
            print(f"step {step:4d}  loss {loss.item():.3f}  {gone:.0f} s", flush=True)
    with torch.no_grad():
        model.token_embedding.weight[known] = rows
    return disassemble(model, config), config


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder (default: the package)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--pairs", type=int, default=14_400)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        default="bf16",
        help="of the image tower in training; bf16 is about 4 times faster where the CPU has AMX",
    )
    parser.add_argument("--evaluate", action="store_true", help="only print the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        model, config, digest = load_tiny_clip(args.out)
        print(f"tiny-clip {digest[:12]} on synthderm, accuracy in per cent:")
    else:
        stored, config = train(args)
        model = assemble(stored, config)
        data = save(stored)
        config["sha256"] = hashlib.sha256(data).hexdigest()
        config["command"] = (
            f"python benchmarks/train_tiny_clip.py --seed {args.seed} --steps {args.steps} "
            f"--pairs {args.pairs} --batch {args.batch} --lr {args.lr:g} --threads {args.threads} "
            f"--precision {args.precision}"
        )
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / WEIGHTS).write_bytes(data)
        (args.out / CONFIG).write_text(json.dumps(config) + "\n", encoding="utf-8")
    for what, figure in measure(model, config, seeds=range(1, 11)).items():
        print(f"  {what:24s} {figure:5.1f}")


if __name__ == "__main__":
    main()
