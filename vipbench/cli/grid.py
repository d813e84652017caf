"""The options that choose cells and say how they are run: the fields of a RunSpec.

`vipbench run` and `vipbench tune` take them from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import text

File = Annotated[
    Path | None, typer.Argument(metavar="[SUITE]", show_default=False, help="The same as --suite.")
]
Suite = Annotated[
    Path | None, text("--suite", "FILE", "A YAML suite; flags override it. A run saves its own.")
]
Methods = Annotated[
    str | None, text("--methods", "A,B", "Such as coop,vip,vip[context=off]; +coop adds.")
]
Datasets = Annotated[
    str | None, text("--datasets", "A,B", "Datasets, such as synthderm or npz:FILE.")
]
Backbones = Annotated[
    str | None, text("--backbones", "A,B", "Backbones, such as openclip:ViT-B-16/openai.")
]
Shots = Annotated[
    str | None,
    text("--shots", "1,2,full", "Training images a class; full takes all. [1,2,4,8,16]"),
]
Seeds = Annotated[
    str | None, text("--seeds", "1,2 or 1-8", "Seeds of support sets and training. [1,2,3]")
]
Settings = Annotated[
    list[str] | None, text("--set", "METHOD.HPARAM=VALUE", "Set a hyperparameter; repeatable.")
]
Symptoms = Annotated[
    list[str] | None, text("--symptoms", "[DATASET=]FILE", "A symptom file (JSON); repeatable.")
]
Descriptions = Annotated[
    list[str] | None,
    text("--descriptions", "[DATASET=]FILE", "Texts that hold the class name; repeatable."),
]
Knowledge = Annotated[
    str | None,
    text(
        "--knowledge",
        "symptoms|out-of-domain|useless|incorrect",
        "What stands in the symptoms' place; several with commas. [symptoms]",
    ),
]
Out = Annotated[Path | None, text("--out", "DIR", "The results folder. [./vipbench-results]")]
Device = Annotated[
    str | None, text("--device", "auto|cpu|cuda", "Where to compute; also cuda:0,cuda:2. [auto]")
]
Workers = Annotated[
    int | None,
    text("--workers", "N", "Processes that run cells at once. [1, or one a CUDA device]"),
]
Precision = Annotated[
    str | None, text("--precision", "fp32|bf16", "Of the training text pass. [fp32]")
]
Views = Annotated[
    str | None,
    text(
        "--views",
        "per-epoch|none|V",
        "Augmented views of a training image: a new one each epoch, none, V. [per-epoch]",
    ),
]
Protocol = Annotated[
    str | None,
    text(
        "--protocol",
        "NAME[source=DATASET]",
        "few-shot, full, base-to-new, cross-dataset, domain-shift, imbalanced or "
        "validation-free. [few-shot]",
    ),
]
Sampler = Annotated[
    str | None, text("--sampler", "nested|coop", "How support sets are drawn. [nested]")
]
Validation = Annotated[
    str | None,
    text(
        "--validation",
        "none|k|min(k,4)|full",
        "Validation images a class, of k shots. [min(k,4)]",
    ),
]
Selection = Annotated[
    str | None, text("--selection", "last|best_val", "Which epoch is scored. [last]")
]
ScoreOn = Annotated[
    str | None,
    text(
        "--score-on",
        "test|val:k|val:min(k,4)|val:full",
        "Validation images a class in the test split's place. [test]",
    ),
]
ShotsUnit = Annotated[
    str | None,
    text("--shots-unit", "image|group", "What shots count: images or patients. [image]"),
]
AllowGroupOverlap = Annotated[
    bool | None,
    typer.Option(
        "--allow-group-overlap",
        help="Run although splits share groups (patients).",
        show_default=False,
    ),
]
Profile = Annotated[
    str | None,
    text(
        "--profile",
        "matched|published|quick",
        "One protocol for all rows, each paper's own, or cheap settings. [matched]",
    ),
]
CellTimeout = Annotated[
    float | None, text("--cell-timeout", "SECONDS", "How long one cell may take. [3600]")
]
Tables = Annotated[
    str | None, text("--tables", "A,B", "Further tables to leave in --out: presets of `table`.")
]
Figures = Annotated[
    str | None, text("--figures", "A,B", "Figures to leave in --out: kinds of `plot`.")
]
