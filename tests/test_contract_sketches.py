"""docs/contract-sketches.md: the sketches run as they stand, and meet the recorded figures."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.golden_util import golden_backbone, load_golden
from vipbench import api
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.trainer import train

PAGE = Path(__file__).resolve().parents[1] / "docs" / "contract-sketches.md"
# Class -> how the page's table calls it.
SKETCHES = {
    "ProGrad": "ProGrad",
    "BiomedCoOp": "BiomedCoOp",
    "LPPlusPlus": "LP++",
    "TipAdapterF": "Tip-Adapter-F",
    "BayesianPrompts": "Bayesian prompts",
    "MaPLe": "MaPLe",
    "PromptSRC": "PromptSRC",
    "CLIPLoRA": "CLIP-LoRA",
    "TransCLIP": "TransCLIP",
}
# What a method may define: the contract's own names. Anything else is the method's private
# business as long as nobody but itself calls it.
CONTRACT = {name for name, _ in inspect.getmembers(api.Method, inspect.isfunction)}
OVERRIDABLE = {"__init__", "noise", "prepare", "forward", "loss", "combine", "fit", "finish"}
OVERRIDABLE |= {"predict", "after_step"}


@pytest.fixture(scope="module")
def sketches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page's Python blocks define, together one module."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    file = tmp_path_factory.mktemp("sketches") / "contract_sketches.py"
    file.write_text("\n".join(blocks))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return vars(module)


def generator(purpose: str) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:7], "little")
    return torch.Generator().manual_seed(seed)


def make(
    method: type[api.Method],
    backbone: api.ImageBackbone,
    names: tuple[str, ...],
    n_support: int,
    descriptions: tuple[tuple[str, ...], ...] | None = None,
    templates: tuple[str, ...] = ("a photo of a {}.",),
    shots: int | None = None,
    **hparams: Any,
) -> tuple[api.Method, api.Recipe | None]:
    info = api.CellInfo(
        shots=shots,
        n_support=n_support,
        n_classes=len(names),
        backbone=backbone.name,
        dim=backbone.dim,
        width=backbone.width if isinstance(backbone, api.Backbone) else 0,
        dataset="toy",
    )
    chosen = method.HParams(**hparams).for_cell(info)
    task = api.Task(backbone, names, templates, None, info, generator, descriptions=descriptions)
    return method(task, chosen), chosen.recipe(info)


def run(
    method: api.Method, recipe: api.Recipe | None, support: api.Support
) -> list[dict[str, float]]:
    """What the engine does with one cell, batches in stored order."""
    method.prepare(support)
    history: list[dict[str, float]] = []
    method.train()
    if api.has_own_fit(type(method)):
        method.fit(support)
    elif recipe is not None:
        recipe = dataclasses.replace(recipe, shuffle=False)
        for name, shape in method.noise().items():
            method.register_buffer(name, torch.zeros(shape))
        cell = TrainCell(method, recipe, support, generator)
        train([cell])
        history = cell.history
    method.eval()
    method.finish(support)
    return history


def scores(method: api.Method, x: torch.Tensor) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(method.predict(x))


def tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def epoch_means(losses: npt.NDArray[np.float32], epochs: int) -> npt.NDArray[np.float32]:
    return np.asarray(losses.reshape(epochs, -1).mean(1))


@pytest.mark.parametrize("name", SKETCHES)
def test_a_sketch_overrides_only_declared_methods(sketches: dict[str, Any], name: str) -> None:
    sketch = sketches[name]
    assert issubclass(sketch, api.Method)
    own = {k for k, v in vars(sketch).items() if inspect.isfunction(v)}
    engine_side = CONTRACT - OVERRIDABLE
    assert not own & engine_side, f"{name} overrides what is not declared to be overridden"
    row = next(r for r in PAGE.read_text().splitlines() if r.startswith(f"| {SKETCHES[name]} |"))
    assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == (own & OVERRIDABLE) - {"__init__"}


def feature_support(golden: dict[str, Any], shots: int | None = None, **more: Any) -> api.Support:
    return api.Support(
        plain=tensor(golden["support_features"]),
        labels=tensor(golden["support_labels"]).long(),
        n_classes=len(golden["text_features"]),
        shots=shots,
        **more,
    )


class GivenTexts(api.Backbone):
    """A text side whose features are given: the recorded files of adapters hold no towers."""

    name, fingerprint, image_size = "given", "given", 0
    vision_width, vision_layers, text_layers, context_length = None, 0, 0, 77
    device = torch.device("cpu")

    def __init__(self, features: torch.Tensor, logit_scale: float = 100.0) -> None:
        self.features, self.logit_scale = features, logit_scale
        self.dim = self.width = features.shape[1]

    def embed(self, texts: api.Texts) -> api.Prompts:
        n = len(texts)
        return api.Prompts(torch.arange(n).unsqueeze(1), torch.ones(n, dtype=torch.long))

    def encode_text(
        self, prompts: api.Prompts, context: torch.Tensor | None = None, tap: Any = None
    ) -> torch.Tensor:
        return self.features[prompts.tokens[:, 0]]

    def to(self, device: Any) -> None: ...

    def preprocess(self, image: Any) -> Any: ...

    def encode_image(self, pixels: Any, tap: Any = None) -> Any: ...

    def trainable_copy(self, pretrained: bool = True) -> Any: ...

    def embed_words(self, words: str) -> Any: ...


def given(golden: dict[str, Any]) -> tuple[GivenTexts, tuple[str, ...]]:
    if "text_prototypes" in golden:
        features = tensor(golden["text_prototypes"]).T.contiguous()
    else:
        features = tensor(golden["text_features"])
    return GivenTexts(features), tuple(f"class {i}" for i in range(len(features)))


def test_lpp_meets_the_recorded_figures(sketches: dict[str, Any], shared: Path) -> None:
    golden = load_golden(shared / "golden" / "lpp_a.npz")
    hyper = golden["meta"]["hyper"]
    backbone, names = given(golden)
    support = feature_support(golden, hyper["shots"])
    method, recipe = make(sketches["LPPlusPlus"], backbone, names, 40, iterations=hyper["epochs"])
    assert recipe is None
    with torch.no_grad():
        method.head.bias.copy_(tensor(golden["init/classifier.bias"]))
    run(method, recipe, support)
    np.testing.assert_allclose(
        method.alpha.detach(), golden["final/alpha_vec"][0], rtol=0, atol=1e-3
    )
    test = tensor(golden["test_features"])
    np.testing.assert_allclose(scores(method, test), golden["logits_final"], rtol=0, atol=1.6e-3)


def test_lpp_takes_the_best_iteration_on_validation(sketches: dict[str, Any], shared: Path) -> None:
    golden = load_golden(shared / "golden" / "lpp_a.npz")
    backbone, names = given(golden)
    val = api.Labelled(tensor(golden["val_features"]), tensor(golden["val_labels"]).long())
    support = feature_support(golden, 8, val=val)
    method, recipe = make(sketches["LPPlusPlus"], backbone, names, 40, iterations=60)
    with torch.no_grad():
        method.head.bias.copy_(tensor(golden["init/classifier.bias"]))
    run(method, recipe, support)
    right = (scores(method, val.x).argmax(1) == golden["val_labels"]).mean() * 100
    assert right == pytest.approx(golden["val_acc"].max(), abs=1e-3)


def test_tip_adapter_f_meets_the_recorded_figures(sketches: dict[str, Any], shared: Path) -> None:
    golden = load_golden(shared / "golden" / "tipf_a.npz")
    hyper = golden["meta"]["hyper"]
    backbone, names = given(golden)
    views = tensor(golden["aug_features"])
    order = golden["epoch_order"]
    # The recorded run shuffles: hand the engine the rows of each epoch in that order.
    method, recipe = make(
        sketches["TipAdapterF"],
        backbone,
        names,
        20,
        alpha=hyper["alpha"],
        beta=hyper["beta"],
        epochs=hyper["train_epoch"],
        batch_size=hyper["batch_size"],
        steps_beta=hyper["search_step"][0],
        steps_alpha=hyper["search_step"][1],
    )
    assert recipe is not None
    val = api.Labelled(tensor(golden["val_features"]), tensor(golden["val_labels"]).long())
    support = feature_support(golden, 4, get_view=views.__getitem__, n_views=len(views))
    with torch.no_grad():
        method.prepare(support)
        initial = scores(method, tensor(golden["test_features"]))
        method.finish(dataclasses.replace(support, val=val))
    np.testing.assert_allclose(initial, golden["logits_tip"], rtol=0, atol=1e-4)
    found = float(method.beta), float(method.alpha)
    np.testing.assert_allclose(found, golden["search_tip_beta_alpha"], rtol=1e-6)

    method.alpha.fill_(hyper["alpha"])
    method.beta.fill_(hyper["beta"])
    # Views of the training in the recorded order of rows, and labels alike: one epoch a time.
    losses = []
    rates = golden["lr_per_step"].reshape(len(order), -1)
    optimizer = torch.optim.AdamW(
        method.parameters(), lr=recipe.lr, eps=recipe.eps, weight_decay=recipe.weight_decay
    )
    for epoch, rows in enumerate(order):
        for step, chosen in enumerate(np.split(rows, range(8, len(rows), 8))):
            optimizer.param_groups[0]["lr"] = float(rates[epoch, step])
            x, labels = support.plain[chosen], support.labels[chosen]
            loss = method.loss(api.Batch(x, labels, torch.ones(len(chosen))))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose(losses, golden["losses"], rtol=0, atol=1e-5)
    test = tensor(golden["test_features"])
    np.testing.assert_allclose(scores(method, test), golden["logits_final"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["prograd_a", "biomedcoop_a"])
def test_prompt_sketches_meet_the_recorded_figures(
    sketches: dict[str, Any], shared: Path, name: str
) -> None:
    golden = load_golden(shared / "golden" / f"{name}.npz")
    meta, hyper = golden["meta"], golden["meta"]["hyper"]
    backbone = golden_backbone(golden)
    common = {"lr": hyper["base_lr"], "epochs": hyper["epochs"], "batch_size": hyper["batch_size"]}
    x, labels = tensor(golden["image_features"]), tensor(golden["labels"]).long()
    names = tuple(meta["classnames"])
    if name == "prograd_a":
        method, recipe = make(
            sketches["ProGrad"], backbone, names, len(x), n_ctx=hyper["n_ctx"], **common
        )
    else:
        # The recorded teachers are texts of the official program; take their features.
        experts = torch.nn.functional.normalize(tensor(golden["fixed_embeddings"]), dim=-1)

        class Given(sketches["BiomedCoOp"]):
            def __init__(self, task: api.Task, hparams: Any) -> None:
                super().__init__(task, hparams)
                self.experts = experts
                self.centre = torch.nn.functional.normalize(experts.mean(1), dim=-1)

        method, recipe = make(
            Given,
            backbone,
            names,
            len(x),
            descriptions=tuple((f"a photo of a {n.replace('_', ' ')}.",) for n in names),
            texts=1,
            consistency=hyper["sccm_lambda"],
            distillation=hyper["kdsp_lambda"],
            tau=hyper["tau"],
            **common,
        )
    test = tensor(golden["test_features"])
    np.testing.assert_allclose(method.context.detach(), golden["init/ctx"], atol=1e-6)
    np.testing.assert_allclose(scores(method, test), golden["logits_init"], rtol=0, atol=1e-4)
    history = run(method, recipe, api.Support(x, labels, len(names), None))
    if name == "biomedcoop_a":
        found = [entry["loss"] for entry in history]
        np.testing.assert_allclose(
            found, epoch_means(golden["losses"], hyper["epochs"]), rtol=0, atol=1e-4
        )
    np.testing.assert_allclose(scores(method, test), golden["logits_final"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(method.context.detach(), golden["final/ctx"], rtol=0, atol=1e-4)


def load_initial(method: api.Method, golden: dict[str, Any], kind: str) -> None:
    """The recorded start of the parameters that are drawn at random."""
    with torch.no_grad():
        if kind == "maple":
            prefix = "init/prompt_learner."
            method.project.weight.copy_(tensor(golden[prefix + "proj.weight"]))
            method.project.bias.copy_(tensor(golden[prefix + "proj.bias"]))
            for i, layer in enumerate(method.project_deep):
                where = f"{prefix}compound_prompt_projections.{i}."
                layer.weight.copy_(tensor(golden[where + "weight"]))
                layer.bias.copy_(tensor(golden[where + "bias"]))
                method.deep[i].copy_(tensor(golden[f"{prefix}compound_prompts_text.{i}"]))
        elif kind == "promptsrc":
            blocks = "transformer.resblocks.1.VPT_shallow"
            method.deep[0].copy_(tensor(golden[f"init/text_encoder.{blocks}"]))
            method.vision[0].copy_(tensor(golden["init/image_encoder.VPT"]))
            method.vision[1].copy_(tensor(golden[f"init/image_encoder.{blocks}"]))
        else:
            for tower, prefix in (("vision", "visual."), ("text", "")):
                for layer in range(2):
                    for which, letter in enumerate("qkv"):
                        where = f"init/{prefix}transformer.resblocks.{layer}.attn.{letter}_proj"
                        down = getattr(method, f"{tower}_down")
                        down[layer, which].copy_(tensor(golden[f"{where}.w_lora_A"]))


@pytest.mark.parametrize("kind", ["maple", "promptsrc", "cliplora"])
def test_image_sketches_meet_the_recorded_figures(
    sketches: dict[str, Any], shared: Path, kind: str
) -> None:
    golden = load_golden(shared / "golden" / f"{kind}_a.npz")
    meta, hyper = golden["meta"], golden["meta"]["hyper"]
    backbone = golden_backbone(golden)
    images = (tensor(golden["images_u8"]).float() - 128) / 64
    test = (tensor(golden["test_images_u8"]).float() - 128) / 64
    labels = tensor(golden["labels"]).long()
    names = tuple(meta["classnames"])
    settings: dict[str, Any] = {"batch_size": hyper["batch_size"]}
    shots = None
    if kind == "cliplora":
        shots = hyper["shots"]
        settings |= {"lr": hyper["lr"], "iterations_per_shot": hyper["n_iters"], "dropout": 0.0}
    else:
        settings |= {"lr": hyper["base_lr"], "epochs": hyper["epochs"]}
    if kind == "maple":
        settings |= {"n_ctx": hyper["n_ctx"], "depth": hyper["prompt_depth"]}
        method, recipe = make(sketches["MaPLe"], backbone, names, len(images), **settings)
    elif kind == "promptsrc":
        settings |= {
            "average_mean": hyper["gpa_mean"],
            "average_std": hyper["gpa_std"],
            "n_ctx": hyper["n_ctx_text"],
        }
        method, recipe = make(sketches["PromptSRC"], backbone, names, len(images), **settings)
        assert recipe is not None
        np.testing.assert_allclose(recipe.epoch_weights, golden["gauss"], atol=1e-9)
        # Of the official templates, normalised where they are used.
        method.frozen = torch.nn.functional.normalize(tensor(golden["fixed_embeddings"]), dim=-1)
    else:
        backbone.logit_scale = hyper["logit_scale"]  # the official program is handed 100
        method, recipe = make(
            sketches["CLIPLoRA"], backbone, names, len(images), shots=shots, **settings
        )
    load_initial(method, golden, kind)
    np.testing.assert_allclose(scores(method, test), golden["logits_init"], rtol=0, atol=1e-4)
    history = run(method, recipe, api.Support(images, labels, len(names), shots))
    if kind != "cliplora":
        found = [entry["loss"] for entry in history]
        np.testing.assert_allclose(
            found, epoch_means(golden["losses"], hyper["epochs"]), rtol=0, atol=1e-4
        )
    np.testing.assert_allclose(scores(method, test), golden["logits_final"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("compat", [True, False])
def test_transclip_meets_the_recorded_figures(
    sketches: dict[str, Any], shared: Path, compat: bool
) -> None:
    golden = load_golden(shared / "golden" / "transclip_fs_a.npz")
    backbone, names = given(golden)
    support = api.Support(
        tensor(golden["support_features"]), tensor(golden["support_labels"]).long(), 5, 4
    )
    method, recipe = make(sketches["TransCLIP"], backbone, names, 20, compat=compat)
    run(method, recipe, support)
    z = np.exp(scores(method, tensor(golden["query_features"])))
    np.testing.assert_allclose(z.sum(1), 1, atol=1e-5)
    difference = np.abs(z - golden["z_final"]).max()
    # The right pairing of rows is known to move z by about 0.1 in this case.
    assert difference < 1e-5 if compat else 0.01 < difference < 0.5


def test_bayesian_prompts_answer_each_image_alone(sketches: dict[str, Any], shared: Path) -> None:
    golden = load_golden(shared / "golden" / "prograd_a.npz")
    backbone = golden_backbone(golden)
    names = tuple(golden["meta"]["classnames"])
    x, labels = tensor(golden["image_features"]), tensor(golden["labels"]).long()
    method, recipe = make(
        sketches["BayesianPrompts"], backbone, names, len(x), samples=3, epochs=4, lr=0.02
    )
    history = run(method, recipe, api.Support(x, labels, len(names), None))
    assert history[-1]["loss"] < history[0]["loss"]
    together = scores(method, x[:4])
    alone = np.concatenate([scores(method, x[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(np.exp(together).sum(1), 1, atol=1e-5)


def test_the_hashed_dropout_drops_its_share_and_repeats(sketches: dict[str, Any]) -> None:
    dropout, x = sketches["dropout"], torch.ones(64, 50, 32)
    keys = torch.randn(3, 1, generator=generator("keys"))
    masks = torch.vmap(lambda key: dropout(x, 0.25, key, 7))(keys)
    assert torch.equal(masks[1], dropout(x, 0.25, keys[1], 7))
    other = dropout(x, 0.25, keys[1], 8)
    assert masks.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    for mask in (*masks, other):
        assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.006)
        # Neither rows nor columns share their fate.
        assert (mask == 0).float().mean((0, 1)).std() < 0.02
        assert (mask == 0).float().mean((1, 2)).std() < 0.03
    agree = ((masks[1] == 0) & (other == 0)).float().mean().item()
    assert agree == pytest.approx(0.25**2, abs=0.006)
