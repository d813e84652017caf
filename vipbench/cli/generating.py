"""`vipbench symptoms generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vipbench.cli import FAILED, OK
from vipbench.cli.symptomwork import loaded
from vipbench.cli.text import clean
from vipbench.engine.loading import LoadedDataset
from vipbench.engine.sampling import SamplingError, draw_support, nested_order
from vipbench.errors import UsageError, unknown
from vipbench.plugins import Registry
from vipbench.symptoms.form import KINDS
from vipbench.symptoms.generate import Asked, generate
from vipbench.symptoms.generate_cassette import Cassette
from vipbench.symptoms.generate_client import Client, host_of
from vipbench.symptoms.generate_consent import Sending, consent
from vipbench.symptoms.generate_grids import MOST_IMAGES, grid
from vipbench.symptoms.generate_prompts import read_prompts
from vipbench.symptoms.generate_report import report

INTERSECTIONS = ("clip", "model")


def say(line: str) -> None:
    """A line for the person at the terminal."""
    print(clean(line), file=sys.stderr)


def generate_command(
    dataset: str, modality: str, model: str, out: Path, base_url: str | None, kind: str,
    n: int | None, send_images: bool, images: str, consent: str | None, intersection: str,
    threshold: float, backbone: str, prompts: Path | None, cassette: Path | None,
    temperature: float | None, max_requests: int, timeout: float, data_root: Path | None,
) -> int:  # fmt: skip
    """Write FILE and FILE.report.md; grids into FILE.grids/. Raises UsageError."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if intersection not in INTERSECTIONS:
        raise unknown("intersection", intersection, INTERSECTIONS)
    if base_url is None and not (cassette is not None and cassette.exists()):
        raise UsageError(
            "--base-url is required: the address of the server to ask, such as "
            "http://127.0.0.1:11434/v1; there is no default one (or give a recorded --cassette)"
        )
    if base_url is not None:
        host_of(base_url)
    if send_images and kind == "descriptions":
        raise UsageError("descriptions are written from class names alone; drop --send-images")
    if images != "train" and not send_images:
        raise UsageError(f"--images {images} goes with --send-images: without it none is shown")
    registry, data = loaded(dataset, data_root)
    names = data.dataset.class_names
    asked: dict[str, Any] = {
        "dataset": data.dataset.name,
        "class_names": names,
        "modality": modality,
        "prompts": read_prompts(prompts),
        "kind": kind,
        "n": n or (50 if kind == "descriptions" else 10),
        "threshold": threshold,
    }
    if send_images:
        chosen = _chosen(data, images)
        grids = {name: _grid(data, chosen[i]) for i, name in enumerate(names)}
        folder = _save(out.with_name(out.name + ".grids"), grids)
        say(f"The grids, exactly as they would be sent, are in {folder}")
        counts = {name: len(chosen[i]) for i, name in enumerate(names)}
        if base_url is not None:
            _consent(data, base_url, model, sum(counts.values()), folder, consent)
        asked |= {"grids": grids, "images_seen": counts, "images": images}
        if intersection == "clip":
            asked |= {"embed": _embedder(registry, backbone), "embedder": backbone}
    client = Client(
        model, base_url, Cassette(cassette), timeout, max_requests, temperature, say=say
    )
    try:
        done = generate(Asked(**asked), client, say)
    finally:
        client.close()
        say(
            f"{client.requests} requests, {client.tokens} tokens, "
            f"{client.replayed} replies from the cassette"
        )
    where = out.with_name(out.name + ".report.md")
    where.write_text(report(done), encoding="utf-8")
    if done.text is None:
        say(f"No symptom file was written: nothing usable for {', '.join(done.empty)}; see {where}")
        return FAILED
    out.write_text(done.text, encoding="utf-8")
    kept = sum(len(r.kept) for r in done.classes.values())
    print(f"{kept} {kind} in {out}; every text with its reason in {where}: read them before use")
    if kind == "symptoms" and not send_images:
        print("Stage (b), the images, was skipped.")
    return OK


def _chosen(data: LoadedDataset, images: str) -> list[list[int]]:
    """Positions in the training split, class by class; never of another split."""
    train, names = data.splits["train"], data.dataset.class_names
    parts = images.split(":")
    if images == "train":
        key = ("symptom-grid", data.fingerprint)
        return [nested_order(train, c, (*key, c))[:MOST_IMAGES].tolist() for c in range(len(names))]
    if len(parts) != 3 or parts[0] != "support" or not all(p.isdigit() for p in parts[1:]):
        raise UsageError(f"--images takes train or support:K:SEED, got '{images}'")
    try:
        drawn = draw_support(
            train, None, len(names), names, int(parts[1]), int(parts[2]), "nested", "none",
            data.fingerprint,
        )  # fmt: skip
    except SamplingError as error:
        raise UsageError(f"--images {images}: {error}") from None
    indices = drawn.train.tolist()
    return [[i for i in indices if train.labels[i] == c][:MOST_IMAGES] for c in range(len(names))]


def _grid(data: LoadedDataset, indices: Sequence[int]) -> bytes:
    return grid([data.splits["train"].open(i) for i in indices])


def _save(folder: Path, grids: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, png) in enumerate(grids.items()):
        word = "".join(c if c.isalnum() else "-" for c in name)
        (folder / f"{i:02d}-{word}.png").write_bytes(png)
    return folder


def _consent(
    data: LoadedDataset, url: str, model: str, count: int, folder: Path, given: str | None
) -> None:
    dataset = data.dataset
    sending = Sending(url, model, count, dataset.name, dataset.licence, dataset.sharing, folder)
    ask = input if sys.stdin is not None and sys.stdin.isatty() else None
    consent(sending, given, ask, say)


def _embedder(registry: Registry, source: str) -> Any:
    import torch

    from vipbench.api import Backbone
    from vipbench.engine.loading import load_backbone

    towers = load_backbone(registry, source).backbone
    if not isinstance(towers, Backbone):
        raise UsageError(f"'{towers.name}' has no text tower; use --intersection model")

    def embed(texts: Sequence[str]) -> Any:
        with torch.no_grad():
            return towers.encode_text(towers.embed(list(texts))).double().cpu().numpy()

    return embed
