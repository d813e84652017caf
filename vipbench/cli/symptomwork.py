"""`vipbench symptoms check | show | diff | rank`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

from vipbench.cli import FAILED, OK
from vipbench.cli.text import clean, columns
from vipbench.engine.loading import LoadedDataset, load_backbone, load_dataset
from vipbench.errors import UsageError, unknown
from vipbench.plugins import Registry, load_registry
from vipbench.spec import RunSpec
from vipbench.symptoms import KNOWLEDGE, SymptomSet, load_symptoms
from vipbench.symptoms.check import check, difference
from vipbench.symptoms.knowledge import changes


def loaded(
    source: str, root: Path | None, file: Path | None = None
) -> tuple[Registry, LoadedDataset]:
    """A dataset with its symptoms, or those of `file`."""
    registry = load_registry()
    spec = RunSpec(datasets=(source,), data_root=root, symptoms={"*": file} if file else {})
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
        f"{found.sha256[:12]}, {len(findings)} findings"
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
        _say_source(load_symptoms(file, names))
    return OK


def _say_source(found: SymptomSet) -> None:
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
    from vipbench.engine.symptomranks import rank_symptoms

    registry, data = loaded(dataset, root, file)
    rows = [("class", "symptom", "AUROC alone", "class loses without it")]
    for one in rank_symptoms(data, load_backbone(registry, backbone)):
        loss = "-" if math.isnan(one.loss) else f"{one.loss:+.3f}"
        rows.append((one.class_name, clean(one.symptom), f"{one.auroc:.3f}", loss))
    for line in columns(rows):
        print(line)
    n = len(data.splits["train"])
    print(f"AUROC of the cosine on the {n} training images, class against rest", file=sys.stderr)
    return OK
