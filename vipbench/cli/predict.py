"""`vipbench predict`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, PluginsDir, Prompt, PromptBackbone, out


def predict(
    prompt: Prompt,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", show_default=False, help="Image files or folders."),
    ],
    out: Annotated[
        Path | None,
        out("FILE", "Write the scores of all classes to FILE.csv or FILE.json instead."),
    ] = None,
    backbone: PromptBackbone = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
) -> int:
    """Classify image files, or all images in folders. Research only, not for clinical use."""
    from vipbench.cli.commands.predict import predict_command

    return predict_command(prompt, images, plugins_dir, backbone, out)
