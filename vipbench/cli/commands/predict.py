"""`vipbench predict`: classify images with a prompt file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vipbench.cli.exit_codes import OK
from vipbench.engine.explain.prompt_files import unpack
from vipbench.plugins.registry import load_registry
from vipbench.text import clean, columns

CAUTION = "Research only, not for clinical use."


def predict_command(
    prompt: Path, images: Sequence[Path], plugins_dir: Path | None, backbone: str | None = None
) -> int:
    """Print class and share of each image."""
    trained = unpack(prompt, load_registry(plugins_dir), named=backbone)
    scores = trained.score(trained.inputs(images))
    rows = [("image", "class", "softmax share", "runner-up")]
    for path, row in zip(images, scores.softmax(-1), strict=True):
        first, second = row.argsort(descending=True, stable=True)[:2].tolist()
        names = trained.class_names
        rows.append((clean(str(path)), names[first], f"{row[first]:.3f}", names[second]))
    print("\n".join(columns(rows)))
    print(f"{CAUTION} These scores are not calibrated probabilities.")
    return OK
