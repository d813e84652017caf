"""The texts of the first class that each method sees: in the plan, and in its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vipbench.engine.evaluation.records import base_record
from vipbench.engine.screen import text_lines
from vipbench.engine.workers.messages import Plan
from vipbench.engine.workers.session import Session
from vipbench.runspec.run import RunSpec


def test_texts_are_shown_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path))
    events: list[Any] = []
    session = Session(events.append)
    names = ["zero-shot", "tip-adapter", "coop", "vip", "ncm"]
    session.plan(
        RunSpec.parse(
            {
                "methods": names, "datasets": ["synthderm"], "backbones": ["tiny-clip"],
                "shots": [1], "seeds": [1], "device": "cpu",
            }
        )
    )  # fmt: skip
    [plan] = [event for event in events if isinstance(event, Plan)]
    seen = {one.method: one.texts for one in plan.texts}
    data = next(iter(session.cells.values())).data
    name = data.dataset.class_names[0].replace("_", " ")
    symptoms = data.symptoms[0]
    assert seen["zero-shot"] == (data.dataset.templates[0].replace("{}", name),)
    assert seen["coop"] == (f"[learned] {name}.",)
    assert [text.removeprefix("[learned] ").rstrip(".") for text in seen["vip"][:3]] == [
        text.rstrip(".") for text in symptoms[:3]
    ]
    assert seen["vip"][3:] == ((f"{len(symptoms) - 3} more",) if len(symptoms) > 3 else ())
    # A method without texts has none.
    assert "ncm" not in seen
    for cell in session.cells.values():
        kept = base_record(cell)["data"].get("class_texts", [])
        assert tuple(kept) == seen.get(cell.row.label, ())
    lines = text_lines(plan)
    assert len(lines) == 3  # zero-shot and tip-adapter see the same
    assert "zero-shot" in lines[0]
    assert "tip-adapter" in lines[0]
    assert data.dataset.class_names[0] in lines[0]
    assert "2 more" in text_lines(plan, most=1)[-1]
