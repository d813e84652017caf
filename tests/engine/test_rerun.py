"""Which run makes a record's cell again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.results.samples import record_dict
from vipbench.engine.rerun import spec_of
from vipbench.results import Record
from vipbench.runspec.run import RunSpec

ASKED = ["tiny-clip", "openclip:ViT-B-32@/w/a.pt", "openclip:RN50@/w/b.pt", "transformers:/w/c"]


@pytest.mark.parametrize(
    ("name", "tried"),
    [
        ("tiny-clip", ["tiny-clip"]),
        ("openclip:RN50@/w/b.pt", ["openclip:RN50@/w/b.pt"]),
        ("openclip:ViT-B-32@12ab34cd", ["openclip:ViT-B-32@/w/a.pt"]),
        # Its name tells the kind of model, and no part of its folder.
        ("transformers:clip@12ab34cd", ["transformers:/w/c"]),
        ("timm:resnet18@12ab34cd", ["timm:resnet18@12ab34cd"]),
        ("other", ["other"]),
    ],
)
def test_a_local_checkpoint_is_asked_for_as_its_run_did(
    name: str, tried: list[str], tmp_path: Path
) -> None:
    suite = RunSpec.parse({"methods": ["vip"], "datasets": ["toyderm"], "backbones": ASKED})
    record = Record.of(record_dict(backbone=name))
    assert list(spec_of(record, suite, tmp_path).backbones) == tried
