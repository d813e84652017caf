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
        text("--symptoms", "FILE", "Symptoms of the dataset, if its classes differ."),
    ] = None,
    backbone: PromptBackbone = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
) -> int:
    """Evaluate a prompt file on a dataset's test split.

    If the classes differ from those trained on, parameters that belong to no class are combined
    with the new names and texts."""
    from vipbench.cli.commands.evaluate import evaluate_command

    return evaluate_command(
        prompt, dataset, data_root, plugins_dir, symptoms or (), images or (), backbone
    )
