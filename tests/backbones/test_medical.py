"""Medical models by name: what their entries say, in code and on the page; loading from folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.backbones import hub_models
from tests.backbones.test_openclip_dual import save
from vipbench.backbones.medical import ENTRIES
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"


def test_the_page_has_every_entry_as_it_is() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \| (.*?) \|$", PAGE.read_text(), re.M)
    expected = {
        e.name: " | ".join(
            [
                e.field,
                f"[{e.repo}](https://huggingface.co/{e.repo})",
                e.licence,
                "yes" if e.gated else "no",
                f"`{e.library}:`" if e.library else "as a plugin",
            ]
        )
        for e in ENTRIES
    }
    assert dict(rows) == expected


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_without_a_connection_each_says_what_to_do(
    entry: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError) as caught:
        load_registry().backbone(entry.name)
    output = str(caught.value)
    assert output.startswith(f"'{entry.name}' ({entry.repo}; licence: {entry.licence})")
    if entry.library is None:
        assert "plugin" in output
        assert f"huggingface.co/{entry.repo}" in output
        assert ("accepted" in output) == entry.gated
        return
    assert f"`hf download {entry.repo}`" in output
    assert ("accepted" in output) == entry.gated
    assert entry.hint in output


def test_biomedclip_from_a_folder(tmp_path: Path) -> None:
    save("bert-timm", tmp_path)
    backbone, _ = load_registry().backbone(f"biomedclip:{tmp_path}")
    plain, _ = load_registry().backbone(f"openclip:local-dir:{tmp_path}")
    assert backbone.fingerprint == plain.fingerprint
    assert re.fullmatch(r"biomedclip@[0-9a-f]{8}", backbone.name)
    assert (backbone.licence, backbone.citation) == ("MIT", "arXiv 2303.00915")
    texts = ["a nevus", "lung"]
    ours, theirs = (b.encode_text(b.embed(texts)) for b in (backbone, plain))
    assert torch.equal(ours, theirs)


def test_monet_from_a_folder(tmp_path: Path) -> None:
    hub_models.save_clip(tmp_path)
    backbone, _ = load_registry().backbone(f"monet:{tmp_path}")
    assert backbone.name.startswith("monet@")
    assert backbone.vision_layers == 2


def test_remote_code_is_for_models_that_have_some(tmp_path: Path) -> None:
    save("bert-mean", tmp_path)
    with pytest.raises(UsageError, match=r"\+remote-code"):
        load_registry().backbone(f"dermlip:{tmp_path}+remote-code")
