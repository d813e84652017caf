"""The Visual Symptom Generator of ViP (arXiv 2409.00341, §2.1): what a language model knows of
each class, held against what it sees in images of the class.

(a) a text query per class; (b) a query with one grid of training images of the class; (c) the
features of (a) that (b) supports. Every feature, kept or dropped, is in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vipbench.symptoms.generate.client import Client
from vipbench.symptoms.generate.intersection import (
    THRESHOLD,
    Judged,
    Vectors,
    by_model,
    by_similarity,
)
from vipbench.symptoms.generate.prompts import fill
from vipbench.symptoms.generate.replies import Dropped, features, tidy, unfit
from vipbench.symptoms.load import SymptomError, parse_symptoms, written
from vipbench.symptoms.names import holds_name

Kind = Literal["symptoms", "descriptions"]


@dataclass(frozen=True)
class Asked:
    """What is to be generated.

    class_names: C names. n: texts asked for of a class. grids: class -> PNG of stage (b), None
    where no image is sent; images_seen: class -> training images in it. embed: texts -> (N,D)
    features for the intersection, None to ask the model; embedder: its name, for the record.
    """

    dataset: str
    class_names: Sequence[str]
    modality: str
    prompts: Mapping[str, str]
    kind: Kind = "symptoms"
    n: int = 10
    grids: Mapping[str, bytes] | None = None
    images_seen: Mapping[str, int] = field(default_factory=dict)
    images: str = "none"
    embed: Callable[[Sequence[str]], Vectors] | None = None
    embedder: str = ""
    threshold: float = THRESHOLD


@dataclass
class ClassReport:
    """What became of one class: features of stage (a), judged; of stage (b); dropped texts with
    reason by stage; problems of whole replies."""

    judged: list[Judged] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    dropped: dict[str, list[Dropped]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def kept(self) -> list[str]:
        """The texts for the symptom file."""
        return [j.text for j in self.judged if j.kept]


@dataclass
class Generated:
    """The reports, and the symptom file's text; None where a class came out empty."""

    asked: Asked
    model: str
    date: str
    classes: dict[str, ClassReport]
    text: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def empty(self) -> list[str]:
        """Classes without a text."""
        return [name for name, report in self.classes.items() if not report.kept]


def generate(asked: Asked, client: Client, progress: Callable[[str], None]) -> Generated:
    """Ask for every class, judge every line, and write what is left. Raises UsageError,
    ServerError; nothing is written to a file here."""
    reports = {name: ClassReport() for name in asked.class_names}
    for i, (name, report) in enumerate(reports.items(), 1):
        progress(f"{name} ({i} of {len(reports)})")
        if asked.kind == "descriptions":
            _describe(asked, client, name, report)
        else:
            _look(asked, client, name, report)
    if asked.kind == "symptoms":
        _intersect(asked, client, reports)
    done = Generated(asked, client.model, client.cassette.recorded, reports)
    if not done.empty:
        _write(done)
    return done


def prompt_of(asked: Asked, stage: str, name: str) -> str:
    """What is asked of a class: its `text`, `image` or `descriptions` query."""
    return fill(
        asked.prompts[stage],
        **{"class": name.replace("_", " "), "modality": asked.modality, "n": str(asked.n)},
    )


def _ask(asked: Asked, client: Client, stage: str, name: str, images: Sequence[bytes] = ()) -> Any:
    return client.ask(prompt_of(asked, stage, name), images, f"class '{name}', {stage} query")


def _look(asked: Asked, client: Client, name: str, report: ClassReport) -> None:
    reply = _ask(asked, client, "text", name)
    if reply.problem:
        report.problems.append(f"text query: {reply.problem}")
    found, report.dropped["text"] = features(reply.text, asked.class_names)
    report.judged = [Judged(f, True, "stage (b) was skipped") for f in found]
    if asked.grids is None:
        return
    reply = _ask(asked, client, "image", name, [asked.grids[name]])
    if reply.problem:
        report.problems.append(f"image query: {reply.problem}")
    report.seen, report.dropped["image"] = features(reply.text, asked.class_names)


def _describe(asked: Asked, client: Client, name: str, report: ClassReport) -> None:
    reply = _ask(asked, client, "descriptions", name)
    if reply.problem:
        report.problems.append(f"descriptions query: {reply.problem}")
    spoken = name.replace("_", " ")
    others = [other for other in asked.class_names if other != name]
    texts, dropped = features(reply.text, others)
    report.dropped["descriptions"] = dropped
    for text in texts:
        named = holds_name(spoken, text)
        reason = "" if named else f"does not hold the class name '{spoken}'"
        if named and sum(j.kept for j in report.judged) == asked.n:
            named, reason = False, f"more than the {asked.n} asked for"
        report.judged.append(Judged(text, named, reason))


def _intersect(asked: Asked, client: Client, reports: Mapping[str, ClassReport]) -> None:
    if asked.grids is None:
        return
    text = {name: [j.text for j in r.judged] for name, r in reports.items()}
    image = {name: r.seen for name, r in reports.items()}
    if asked.embed is not None:
        judged = by_similarity(text, image, asked.embed, asked.threshold)
        for name, report in reports.items():
            report.judged = judged[name]
        return
    for name, report in reports.items():
        if not text[name] or not image[name]:
            report.judged = [Judged(t, False, "nothing to support it") for t in text[name]]
            continue
        prompt = fill(
            asked.prompts["intersection"],
            modality=asked.modality,
            text_features="\n".join(f"{i}. {t}" for i, t in enumerate(text[name], 1)),
            image_features="\n".join(f"{i}. {t}" for i, t in enumerate(image[name], 1)),
        )
        reply = client.ask(prompt, (), f"class '{name}', intersection query")
        if reply.problem:
            report.problems.append(f"intersection query: {reply.problem}")
        report.judged = by_model(text[name], reply.text)


def _write(done: Generated) -> None:
    asked = done.asked
    classes = {name: report.kept for name, report in done.classes.items()}
    for name, texts in classes.items():
        others = [c for c in asked.class_names if c != name] if asked.kind != "symptoms" else None
        for text in texts:
            # Once more, on what will be in the file.
            reason = unfit(tidy(text), asked.class_names if others is None else others)
            if reason is not None:
                raise SymptomError(f"class '{name}': '{text[:80]}' may not be written: {reason}")
    how = "stage (b) was skipped"
    if asked.grids is not None:
        how = f"text features of {asked.embedder}, similarity at least {asked.threshold:g}"
        how = how if asked.embed is not None else f"asked {done.model}"
    source: dict[str, Any] = {
        "by": "model",
        "model": done.model,
        "date": done.date,
        "dataset": asked.dataset,
        "modality": asked.modality,
        "images": asked.images,
        "images_seen": {name: asked.images_seen.get(name, 0) for name in asked.class_names},
        "prompts": dict(asked.prompts),
    }
    if asked.kind == "symptoms":
        source["intersection"] = how
    text = written(classes, "", asked.kind, source)
    found = parse_symptoms(text, asked.class_names, "the generated file")
    done.warnings = [w for w in found.warnings if "edited" not in w]
    done.text = written(found.symptoms, found.sha256, asked.kind, source)
