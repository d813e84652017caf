"""The human-readable report of a generation: every text, kept or dropped, with its reason."""

from __future__ import annotations

import json

from vipbench.symptoms.generate.generate import ClassReport, Generated

LONGEST = 160


def report(done: Generated) -> str:
    """Markdown. The model's texts are quoted, cut, and without marks that could break out."""
    asked = done.asked
    lines = [
        f"# {asked.kind.capitalize()} for {_plain(asked.dataset)}, written by a language model",
        "",
        f"- model: {_plain(done.model)}, {done.date}",
        f"- modality: {_plain(asked.modality)}",
        "- no clinician has reviewed the texts; read them before use",
    ]
    if asked.kind == "symptoms":
        if asked.grids is None:
            lines.append(
                "- **stage (b), the images, was skipped**: no image was shown to the model"
            )
        else:
            how = "asked the model" if asked.embed is None else f"similarity under {asked.embedder}"
            lines.append(f"- stage (b): {asked.images}; intersection: {_plain(how)}")
    if done.text is None:
        empty = ", ".join(_plain(name) for name in done.empty)
        lines.append(f"- **no file was written**: nothing usable for {empty}")
    lines += [f"- warning: {_plain(w)}" for w in done.warnings]
    for name, one in done.classes.items():
        seen = asked.images_seen.get(name, 0)
        lines += ["", f"## {_plain(name)}", "", f"Labelled images seen: {seen}.", ""]
        lines += _class(one)
    return "\n".join(lines) + "\n"


def _class(one: ClassReport) -> list[str]:
    lines = [f"- PROBLEM: {_plain(problem)}" for problem in one.problems]
    for judged in one.judged:
        why = f": {_plain(judged.reason)}" if judged.reason else ""
        lines.append(f"- {'kept' if judged.kept else 'dropped'} {_quoted(judged.text)}{why}")
    lines += [f"- seen in images {_quoted(text)}" for text in one.seen]
    for stage, dropped in one.dropped.items():
        lines += [
            f"- dropped ({stage} query) {_quoted(d.text)}: {_plain(d.reason)}" for d in dropped
        ]
    return lines or ["- nothing"]


def _quoted(text: str) -> str:
    cut = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return "`" + json.dumps(cut)[1:-1].replace("`", "\u02cb") + "`"


def _plain(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)[:400]
    for mark in "<>[]`":
        line = line.replace(mark, f"\\{mark}")
    return line
