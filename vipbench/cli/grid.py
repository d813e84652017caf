"""The options that choose cells and say how they are run: the fields of a RunSpec.

`vipbench run` and `vipbench tune` take them from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import CELLS, DATA, MACHINE, OUTPUT, TRAINING, text

File = Annotated[
    Path | None, typer.Argument(metavar="[SUITE]", show_default=False, help="Same as --suite.")
]
Suite = Annotated[
    Path | None,
    text("--suite", "FILE", "YAML suite; flags override it. Runs save their own.", panel=CELLS),
]
Methods = Annotated[
    str | None,
    text(
        "--methods",
        "A,B",
        "Methods, such as coop,vip,vip[context=off]; +coop adds one to the suite's.",
        panel=CELLS,
    ),
]
Datasets = Annotated[
    str | None,
    text("--datasets", "A,B", "Datasets, such as synthderm or npz:FILE.", panel=CELLS),
]
Backbones = Annotated[
    str | None,
    text(
        "--backbones",
        "A,B",
        "Backbones [LABEL=]NAME, such as openclip:ViT-B-16/openai.",
        panel=CELLS,
    ),
]
Shots = Annotated[
    str | None,
    text(
        "--shots",
        "1,2,full",
        "Training images per class; full: the whole split. [1,2,4,8,16]",
        panel=CELLS,
    ),
]
Seeds = Annotated[
    str | None,
    text("--seeds", "1,2 or 1-8", "Seeds of support sets and training. [1,2,3]", panel=CELLS),
]
Settings = Annotated[
    list[str] | None,
    text("--set", "METHOD.HPARAM=VALUE", "Set a hyperparameter; repeatable.", panel=CELLS),
]
Protocol = Annotated[
    str | None,
    text(
        "--protocol",
        "NAME[source=DATASET]",
        "few-shot, full, base-to-new, cross-dataset, domain-shift, imbalanced or "
        "validation-free. [few-shot]",
        panel=CELLS,
    ),
]
Profile = Annotated[
    str | None,
    text(
        "--profile",
        "matched|published|quick",
        "One protocol for all rows, each paper's own, or cheap settings. [matched]",
        panel=CELLS,
    ),
]
Symptoms = Annotated[
    list[str] | None,
    text(
        "--symptoms",
        "[LABEL=][DATASET=]FILE",
        "Symptom file (JSON); repeatable, one row per LABEL.",
        panel=DATA,
    ),
]
Descriptions = Annotated[
    list[str] | None,
    text(
        "--descriptions",
        "[LABEL=][DATASET=]FILE",
        "File of descriptions (texts that contain the class name); likewise.",
        panel=DATA,
    ),
]
Templates = Annotated[
    list[str] | None,
    text(
        "--templates",
        "[LABEL=][DATASET=]FILE",
        "File of prompt templates, one per line, each with {}; likewise.",
        panel=DATA,
    ),
]
Knowledge = Annotated[
    str | None,
    text(
        "--knowledge",
        "symptoms|out-of-domain|useless|incorrect",
        "Replace the symptoms by another kind of text (ablation); comma-separated, one row "
        "each. [symptoms]",
        panel=DATA,
    ),
]
AllowGroupOverlap = Annotated[
    bool | None,
    typer.Option(
        "--allow-group-overlap",
        help="Accept splits that share groups (patients).",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
Precision = Annotated[
    str | None,
    text(
        "--precision",
        "fp32|bf16",
        "Precision of the text tower in training. [fp32]",
        panel=TRAINING,
    ),
]
FeaturePrecision = Annotated[
    str | None,
    text(
        "--feature-precision",
        "fp32|tf32|bf16",
        "Precision of image features; tf32 needs CUDA. [fp32]",
        panel=TRAINING,
    ),
]
Views = Annotated[
    str | None,
    text(
        "--views",
        "per-epoch|none|V",
        "Augmented views per training image: new in each epoch, none, or V fixed ones. [per-epoch]",
        panel=TRAINING,
    ),
]
Sampler = Annotated[
    str | None,
    text("--sampler", "nested|coop", "How to draw support sets. [nested]", panel=TRAINING),
]
Validation = Annotated[
    str | None,
    text(
        "--validation",
        "none|k|min(k,4)|full",
        "Validation images per class at k shots. [min(k,4)]",
        panel=TRAINING,
    ),
]
Selection = Annotated[
    str | None,
    text("--selection", "last|best_val", "Epoch to score. [last]", panel=TRAINING),
]
ScoreOn = Annotated[
    str | None,
    text(
        "--score-on",
        "test|val:k|val:min(k,4)|val:full",
        "Score on the test split, or on validation images per class instead. [test]",
        panel=TRAINING,
    ),
]
ShotsUnit = Annotated[
    str | None,
    text(
        "--shots-unit",
        "image|group",
        "What shots count: images or groups (patients). [image]",
        panel=TRAINING,
    ),
]
Device = Annotated[
    str | None,
    text(
        "--device",
        "auto|cpu|cuda|mps|xpu",
        "Compute device; also cuda:0,cuda:2. [auto]",
        panel=MACHINE,
    ),
]
Workers = Annotated[
    int | None,
    text(
        "--workers",
        "N",
        "Number of worker processes. [1, or one per CUDA device]",
        panel=MACHINE,
    ),
]
CellTimeout = Annotated[
    float | None,
    text("--cell-timeout", "SECONDS", "Time limit per cell. [3600]", panel=MACHINE),
]
Out = Annotated[
    Path | None,
    text("--out", "DIR", "Results folder. [./vipbench-results]", panel=OUTPUT),
]
Tables = Annotated[
    str | None,
    text("--tables", "A,B", "Presets of `table` to save in --out.", panel=OUTPUT),
]
Track = Annotated[
    str | None,
    text(
        "--track",
        "A,B",
        "Trackers to write cells to: tensorboard, mlflow, wandb or a plugin.",
        panel=OUTPUT,
    ),
]
Figures = Annotated[
    str | None,
    text("--figures", "A,B", "Kinds of `plot` to save in --out.", panel=OUTPUT),
]
