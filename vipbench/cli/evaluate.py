"""`vipbench evaluate`: the options."""

from __future__ import annotations

from typing import Annotated

from vipbench.cli.options import (
    AllowCode,
    DataRoot,
    ImageRoots,
    PluginsDir,
    Prompt,
    PromptBackbone,
    text,
)


def evaluate(
    prompt: Prompt,
    dataset: Annotated[str, text("--dataset", "NAME", "The dataset, such as npz:FILE.")],
    data_root: DataRoot = None,
    images: ImageRoots = None,
    symptoms: Annotated[
        list[str] | None,
        text("--symptoms", "FILE", "Its symptoms, where its classes are others."),
    ] = None,
    backbone: PromptBackbone = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
) -> int:
    """Score a prompt file on the test split of a dataset. Where its classes are others than those
    trained on, what was learned is put on their names and texts, if it belongs to no class."""
    from vipbench.cli.commands.evaluate import evaluate_command

    return evaluate_command(
        prompt, dataset, data_root, plugins_dir, symptoms or (), images or (), backbone
    )
