from __future__ import annotations

from pathlib import Path

import pytest

from vipbench.results.sharing.privacy import needs_weights, public_backbone, public_source


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("synthderm", "synthderm"),
        ("derm7pt:5-way", "derm7pt:5-way"),
        ("medmnist:dermamnist", "medmnist:dermamnist"),
        ("npz:/home/somebody/toy.npz", "npz:PATH"),
        ("npz:toy.npz", "npz:PATH"),
        ("folder:C:\\clinic\\images", "folder:PATH"),
        ("folder:patients", "folder:PATH"),
        ("folder:elsewhere", "folder:elsewhere"),
    ],
)
def test_records_tell_no_path(source: str, public: str, tmp_path: Path) -> None:
    (tmp_path / "patients").mkdir()
    assert public_source(source, tmp_path) == public


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("tiny-clip", "tiny-clip"),
        ("openclip:ViT-B-32/openai", "openclip:ViT-B-32/openai"),
        ("openclip:ViT-B-32+gelu@/home/somebody/w.pt", "openclip:ViT-B-32+gelu@PATH"),
        ("timm:resnet18@weights.bin", "timm:resnet18@PATH"),
        ("transformers:google/siglip-base", "transformers:google/siglip-base"),
        ("transformers:/home/some@body/clip", "transformers:PATH"),
        ("transformers:{here}+remote-code", "transformers:PATH+remote-code"),
        ("keep:~/keep+remote-code", "keep:PATH+remote-code"),
        ("keep:+remote-code", "keep:+remote-code"),
        ("own:C:\\clinic\\w.bin", "own:PATH"),
        ("own:size=3,file=/clinic/w.bin", "own:size=3,file=<path>"),
    ],
)
def test_a_backbone_tells_no_path(source: str, public: str, tmp_path: Path) -> None:
    assert public_backbone(source.format(here=tmp_path)) == public
    assert needs_weights(public) == ("PATH" in public or "<path>" in public)
