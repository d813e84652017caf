"""`vipbench symptoms check | show | diff | rank`."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.cli.exit_codes import FAILED, OK
from vipbench.engine.planning.loading import (
    LoadedDataset,
    load_backbone,
    load_dataset,
    load_whole,
)
from vipbench.engine.planning.sampling import SamplingError, draw_support, nested_order
from vipbench.errors import UsageError, printable, unknown
from vipbench.plugins.registry import Registry, load_registry
from vipbench.runspec.run import RunSpec
from vipbench.symptoms import KNOWLEDGE, SymptomSet, load_symptoms
from vipbench.symptoms.check import check, difference
from vipbench.symptoms.generate.cassette import Cassette
from vipbench.symptoms.generate.client import Client, host_of
from vipbench.symptoms.generate.consent import Sending, consent
from vipbench.symptoms.generate.generate import Asked, generate, prompt_of
from vipbench.symptoms.generate.grids import MOST_IMAGES, grid
from vipbench.symptoms.generate.prompts import read_prompts
from vipbench.symptoms.generate.report import report
from vipbench.symptoms.knowledge import changes
from vipbench.symptoms.load import KINDS
from vipbench.text import clean, columns, plural


def loaded(
    source: str, root: Path | None, file: Path | None = None, images: bool = False
) -> tuple[Registry, LoadedDataset]:
    """A dataset with its symptoms, or those of `file`. images: whether its training images are
    used, of one fold where it has folds."""
    registry = load_registry()
    spec = RunSpec(datasets=(source,), data_root=root, symptoms={"*": file} if file else {})
    if images:
        return registry, load_whole(registry, spec, source, "a choice of training images")
    return registry, load_dataset(registry, spec, source)


def check_command(file: Path, dataset: str, backbone: str | None, root: Path | None) -> int:
    """Print the findings."""
    registry, data = loaded(dataset, root)
    found = load_symptoms(file, data.dataset.class_names, strict=False)
    tokens, limit = None, 0
    if backbone is not None:
        tokens, limit = _counter(registry, backbone)
    findings = check(found, tokens, limit)
    for one in findings:
        print(f"{one.kind}: {clean(one.text)}")
    count = sum(map(len, found.symptoms.values()))
    print(
        f"{file.name}: {count} {found.kind} of {len(found.symptoms)} classes, SHA-256 "
        f"{found.sha256[:12]}, {plural(len(findings), 'finding')}"
    )
    return FAILED if findings else OK


def _counter(registry: Registry, source: str) -> tuple[Callable[[str], int | None], int]:
    from vipbench.api import Backbone, TextError

    towers = load_backbone(registry, source).backbone
    if not isinstance(towers, Backbone):
        raise UsageError(f"'{towers.name}' has no text tower")

    def count(text: str) -> int | None:
        try:
            return int(towers.embed([text]).lengths[0])
        except TextError:
            return None

    return count, towers.context_length


def show_command(dataset: str, file: Path | None, knowledge: str, root: Path | None) -> int:
    """Print a set, and where it comes from."""
    if knowledge not in KNOWLEDGE:
        raise unknown("knowledge", knowledge, KNOWLEDGE)
    _, data = loaded(dataset, root, file)
    names = data.dataset.class_names
    if data.symptoms is None:
        raise UsageError(f"'{data.dataset.name}' has no symptoms; give --symptoms FILE")
    own = dict(zip(names, data.symptoms, strict=True))
    rows = [("class", "symptom", f"{knowledge} knowledge")]
    rows += changes(own, knowledge)
    if knowledge == "symptoms":
        rows = [(a, b, "") for a, b, _ in rows]
    for line in columns(rows):
        print(line.rstrip())
    if file is not None:
        _print_source(load_symptoms(file, names))
    return OK


def _print_source(found: SymptomSet) -> None:
    for key, value in found.source.items():
        if key != "prompts":
            print(f"{clean(str(key))}: {clean(str(value))}")
    print(f"sha256: {found.sha256}")


def diff_command(a: Path, b: Path, dataset: str, root: Path | None) -> int:
    """Print the difference."""
    names = loaded(dataset, root)[1].dataset.class_names
    old, new = (load_symptoms(file, names).symptoms for file in (a, b))
    rows = difference(old, new)
    for mark, name, text in rows:
        print(f"{mark} {name}: {clean(text)}")
    return FAILED if any(mark != " " for mark, _, _ in rows) else OK


def rank_command(dataset: str, backbone: str, file: Path | None, root: Path | None) -> int:
    """Print the ranking."""
    from vipbench.engine.explain.symptom_ranks import rank_symptoms

    registry, data = loaded(dataset, root, file, images=True)
    rows = [("class", "symptom", "AUROC alone", "class loses without it")]
    for one in rank_symptoms(data, load_backbone(registry, backbone)):
        loss = "-" if math.isnan(one.loss) else f"{one.loss:+.3f}"
        rows.append((one.class_name, clean(one.symptom), f"{one.auroc:.3f}", loss))
    for line in columns(rows):
        print(line)
    n = len(data.splits["train"])
    print(f"AUROC of the cosine on {n} training images, one class versus rest", file=sys.stderr)
    return OK


INTERSECTIONS = ("clip", "model")


def say(line: str) -> None:
    """A line for the person at the terminal."""
    print(clean(line), file=sys.stderr)


def generate_command(
    dataset: str, modality: str, model: str | None, out: Path | None, base_url: str | None,
    kind: str, n: int | None, send_images: bool, images: str, consent: str | None,
    intersection: str, threshold: float, backbone: str, prompts: Path | None,
    cassette: Path | None, temperature: float | None, max_requests: int, timeout: float,
    data_root: Path | None,
) -> int:  # fmt: skip
    """Write FILE and FILE.report.md; grids into FILE.grids/. Without a server and a cassette, print
    the prompts. Raises UsageError."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if intersection not in INTERSECTIONS:
        raise unknown("intersection", intersection, INTERSECTIONS)
    if base_url is None and cassette is not None and not cassette.exists():
        raise UsageError(
            f"--cassette {cassette} does not exist: to record it, give the server with --base-url, "
            "such as http://127.0.0.1:11434/v1"
        )
    by_hand = base_url is None and cassette is None
    if by_hand and send_images:
        raise UsageError(
            "--send-images needs a server: give --base-url, such as http://127.0.0.1:11434/v1; "
            "there is no default"
        )
    if base_url is not None:
        host_of(base_url)
    if send_images and kind == "descriptions":
        raise UsageError("descriptions are written from class names alone; leave --send-images out")
    if images != "train" and not send_images:
        raise UsageError(f"--images {images} needs --send-images")
    if not by_hand and (model is None or out is None):
        missing = "--model NAME" if model is None else "--out FILE"
        raise UsageError(f"{missing} is required with --base-url or --cassette")
    registry, data = loaded(dataset, data_root, images=send_images)
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
    if model is None or out is None or by_hand:
        return _print_prompts(Asked(**asked), dataset, out)
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
    files.write(where, report(done))
    if done.text is None:
        say(f"No symptom file was written: nothing usable for {', '.join(done.empty)}; see {where}")
        return FAILED
    files.write(out, done.text)
    kept = sum(len(r.kept) for r in done.classes.values())
    print(f"{kept} {kind} in {out}; every text with its reason in {where}: read them before use")
    if kind == "symptoms" and not send_images:
        print("Stage (b), the images, was skipped.")
    return OK


def _print_prompts(asked: Asked, source: str, out: Path | None) -> int:
    """Print the prompts of all classes, to paste into a chat, and what to do with the replies."""
    for number, name in enumerate(asked.class_names, 1):
        stage = "text" if asked.kind == "symptoms" else "descriptions"
        print(f"# {clean(name)} ({number} of {len(asked.class_names)})")
        print(f"{printable(prompt_of(asked, stage, name))}\n")
    file = str(out or f"{asked.kind}.json")
    form = f'{{{json.dumps(asked.class_names[0], ensure_ascii=False)}: ["...", ...], ...}}'
    say("No model was queried and no file was written; --base-url sets a server to query. To do it")
    say(f"by hand, paste each prompt into a chat, save the replies in {file} as {form}, then run:")
    if asked.kind == "symptoms":
        say(f"  {shlex.join(['vipbench', 'symptoms', 'check', file, '--dataset', source])}")
    say(f"  {shlex.join(['vipbench', 'run', '--datasets', source, f'--{asked.kind}', file])}")
    return OK


def _chosen(data: LoadedDataset, images: str) -> list[list[int]]:
    """Positions in the training split, class by class; never of another split."""
    train, names = data.splits["train"], data.dataset.class_names
    parts = images.split(":")
    if images == "train":
        orders = (nested_order(train, c, 0, "symptom-grid") for c in range(len(names)))
        return [order[:MOST_IMAGES].tolist() for order in orders]
    if len(parts) != 3 or parts[0] != "support" or not all(p.isdigit() for p in parts[1:]):
        raise UsageError(f"--images takes train or support:K:SEED, got '{images}'")
    try:
        k, seed = int(parts[1]), int(parts[2])
        drawn = draw_support(train, None, len(names), names, k, seed, "nested", "none")
    except SamplingError as error:
        raise UsageError(f"--images {images}: {error}") from None
    indices = drawn.train.tolist()
    return [[i for i in indices if train.labels[i] == c][:MOST_IMAGES] for c in range(len(names))]


def _grid(data: LoadedDataset, indices: Sequence[int]) -> bytes:
    return grid([data.splits["train"].open(i) for i in indices])


def _save(folder: Path, grids: dict[str, bytes]) -> Path:
    files.make_folder(folder)
    for i, (name, png) in enumerate(grids.items()):
        word = "".join(c if c.isalnum() else "-" for c in name)
        files.write(folder / f"{i:02d}-{word}.png", png)
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
    from vipbench.engine.planning.loading import load_backbone

    towers = load_backbone(registry, source).backbone
    if not isinstance(towers, Backbone):
        raise UsageError(f"'{towers.name}' has no text tower; use --intersection model")

    def embed(texts: Sequence[str]) -> Any:
        with torch.no_grad():
            return towers.encode_text(towers.embed(list(texts))).cpu().double().numpy()

    return embed
