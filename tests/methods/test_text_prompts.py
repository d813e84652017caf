"""KgCoOp, ProGrad, BiomedCoOp, Bayesian prompts and CuPL."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from tests.backbones.clips import random_backbone
from tests.golden_util import golden_backbone, load_golden
from tests.methods.given import close, generator, scores, tensor, train
from vipbench import api
from vipbench.engine.training import trainer as training
from vipbench.engine.training.stacking import TrainCell, can_stack
from vipbench.methods.bayes_coop import BayesCoOp
from vipbench.methods.biomedcoop import UNTUNED, BiomedCoOp
from vipbench.methods.cupl import CuPL
from vipbench.methods.kgcoop import KgCoOp
from vipbench.methods.prograd import ProGrad


def build(
    method: type[api.Method],
    golden: dict[str, Any],
    descriptions: tuple[tuple[str, ...], ...] | None = None,
    **hparams: Any,
) -> tuple[api.Method, api.Recipe | None, api.Support]:
    backbone, names = golden_backbone(golden), tuple(golden["meta"]["classnames"])
    x, labels = tensor(golden["image_features"]), tensor(golden["labels"]).long()
    info = api.CellInfo(None, len(x), len(names), "golden", backbone.dim, backbone.width, "toy")
    template = golden["meta"].get("teacher_template", "a photo of a {}.")
    task = api.Task(backbone, names, (template,), None, info, generator, descriptions=descriptions)
    chosen = method.HParams(**hparams).for_cell(info)
    support = api.Support(x, labels, len(names), None)
    return method(task, chosen).to(task.device), chosen.recipe(info), support


def meets(golden: dict[str, Any], built: tuple[api.Method, api.Recipe | None, Any]) -> None:
    method, recipe, support = built
    close(method.context, golden["init/ctx"], 1e-6)
    close(scores(method, golden["test_features"]), golden["logits_init"])
    assert recipe is not None
    cell = train(method, recipe, support)
    expected = golden["losses"]
    if "kl_losses" in golden:  # the engine keeps the sum of ProGrad's two losses
        expected = expected + golden["kl_losses"]
    close(cell.losses, expected)
    close(method.context, golden["final/ctx"])
    close(scores(method, golden["test_features"]), golden["logits_final"])


def common(golden: dict[str, Any]) -> dict[str, Any]:
    hyper = golden["meta"]["hyper"]
    return {
        "lr": hyper["base_lr"], "epochs": hyper["epochs"], "batch_size": hyper["batch_size"],
        "n_ctx": hyper["n_ctx"], "class_specific": hyper.get("csc", False),
    }  # fmt: skip


def test_the_recorded_figures_of_kgcoop(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "kgcoop_a.npz")
    built = build(KgCoOp, golden, weight=golden["meta"]["hyper"]["W"], **common(golden))
    meets(golden, built)


def test_the_recorded_figures_of_prograd(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "prograd_a.npz")
    hyper = golden["meta"]["hyper"]
    built = build(
        ProGrad, golden, strength=hyper["LAMBDA"], temperature=hyper["T"], **common(golden)
    )
    meets(golden, built)


def words_of(
    method: type[api.Method],
    template: str,
    descriptions: tuple[tuple[str, ...], ...] | None = None,
    **hparams: Any,
) -> api.Method:
    """The method on a random CLIP with the real vocabulary, for a dataset with this template."""
    backbone, names = random_backbone(), ("red spot", "mole")
    info = api.CellInfo(None, 2, 2, "random", backbone.dim, backbone.width, "toy")
    task = api.Task(backbone, names, (template,), None, info, generator, descriptions=descriptions)
    return method(task, method.HParams(**hparams).for_cell(info))


def test_prograd_starts_from_the_words_of_the_datasets_template() -> None:
    method = words_of(ProGrad, "a dermoscopy picture of {}, a lesion.", n_ctx=8)
    words = method.task.backbone.embed_words("a dermoscopy picture of")  # (n,W)
    assert len(words) > 4  # one of them has several tokens
    assert torch.equal(method.context[-len(words) :], words)
    assert not method.context[: -len(words)].any()
    with pytest.raises(api.UnsupportedError, match=r"n_ctx is 4.*'a dermoscopy picture of'") as e:
        words_of(ProGrad, "a dermoscopy picture of {}.", n_ctx=4)
    assert re.search(f"n_ctx .*{len(words)}", str(e.value))
    assert words_of(ProGrad, "{}.", n_ctx=4).context.all()  # no words: drawn


def test_biomedcoop_loses_no_word_with_several_tokens() -> None:
    texts = (("red spot, seen",), ("mole, seen",))
    words = "a dermoscopy picture of"
    tokens = len(random_backbone().embed_words(words))
    for n_ctx in (1, tokens):
        method = words_of(
            BiomedCoOp, "{}", texts, n_ctx=n_ctx, context_init=words, n_prompts=1
        )  # fmt: skip
        plain = method.task.text_features([f"{words} red spot.", f"{words} mole."])
        with torch.no_grad():
            close(method._classes(), torch.nn.functional.normalize(plain, dim=-1), 1e-5)
    with pytest.raises(api.UnsupportedError, match=f"2 .*'{words}"):
        words_of(BiomedCoOp, "{}", texts, n_ctx=2, context_init=words, n_prompts=1)
    many = words_of(
        BiomedCoOp, "{}", texts, n_ctx=1, context_init=words, n_prompts=1, class_specific=True
    )
    assert many.context.shape[0] == 2


def official_descriptions(golden: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    tokenizer = open_clip.SimpleTokenizer()
    special = {0, 49406, 49407}
    return tuple(
        tuple(tokenizer.decode([int(i) for i in ids if int(i) not in special]) for ids in row)
        for row in golden["teacher_token_ids"]
    )


def test_the_recorded_figures_of_biomedcoop(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "biomedcoop_a.npz")
    hyper = golden["meta"]["hyper"]
    built = build(
        BiomedCoOp, golden, official_descriptions(golden), n_prompts=hyper["n_prompts"],
        consistency=hyper["sccm_lambda"], distillation=hyper["kdsp_lambda"], tau=hyper["tau"],
        **common(golden),
    )  # fmt: skip
    fixed = torch.nn.functional.normalize(tensor(golden["fixed_embeddings"]), dim=-1)
    close(built[0].experts, fixed, 1e-5)
    meets(golden, built)


def test_biomedcoop_never_makes_do_with_fewer_or_nameless_texts(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "biomedcoop_a.npz")
    texts = official_descriptions(golden)
    with pytest.raises(api.UnsupportedError, match=r"50 descriptions .* 49 .*'glioma"):
        build(BiomedCoOp, golden, (texts[0][:49], *texts[1:]))
    with pytest.raises(api.UnsupportedError, match=" 0 "):
        build(BiomedCoOp, golden)
    nameless = tuple(t for t in texts[2] if "normal brain" not in t) * 4
    with pytest.raises(api.UnsupportedError, match=r"'normal brain' in dataset 'toy'"):
        build(BiomedCoOp, golden, (*texts[:2], nameless, texts[3]))


@pytest.mark.parametrize("n_ctx", [1, 2, 4])
def test_biomedcoop_keeps_the_words_that_are_no_context_in_the_text(
    shared: Path, n_ctx: int
) -> None:
    golden = load_golden(shared / "golden" / "biomedcoop_a.npz")
    texts = official_descriptions(golden)
    method, _, support = build(BiomedCoOp, golden, texts, n_ctx=n_ctx)
    assert method.context.shape == (n_ctx, 128)
    # Untrained, every split of "a photo of a" into context and text is the same text.
    close(scores(method, golden["test_features"]), golden["logits_init"])
    longer, _, _ = build(BiomedCoOp, golden, texts, n_ctx=6, class_specific=True)
    assert longer.context.shape == (4, 6, 128)
    assert np.isfinite(scores(longer, support.plain)).all()


def test_biomedcoop_says_that_its_weights_are_defaults() -> None:
    info = api.CellInfo(4, 16, 4, "golden", 8, 8, "toy")
    assert BiomedCoOp.HParams().notes(info) == (UNTUNED,)
    assert BiomedCoOp.HParams(consistency=2.0).notes(info) == ()


def test_cupl_is_the_mean_of_descriptions(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "biomedcoop_a.npz")
    method, recipe, _ = build(CuPL, golden, official_descriptions(golden))
    assert recipe is None
    fixed = torch.nn.functional.normalize(tensor(golden["fixed_embeddings"]), dim=-1)
    close(method.classes, torch.nn.functional.normalize(fixed.mean(1), dim=-1), 1e-5)
    with pytest.raises(api.UnsupportedError, match="1 descriptions"):
        build(CuPL, golden)


def noisy(method: api.Method) -> api.Method:
    for name, shape in method.noise().items():
        setattr(method, name, torch.randn(*shape, generator=generator(name)))
    return method


def test_bayesian_prompts_answer_each_image_alone_and_learn(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "prograd_a.npz")
    method, recipe, support = build(BayesCoOp, golden, samples=3, epochs=4, lr=0.02)
    assert recipe is not None
    cell = train(method, recipe, support)
    assert np.mean(cell.losses[-20:]) < np.mean(cell.losses[:20])
    noisy(method)
    together = scores(method, support.plain[:4])
    alone = np.concatenate([scores(method, support.plain[i : i + 1]) for i in range(4)])
    close(together, alone)
    close(np.exp(together).sum(1), 1.0, 1e-5)


def test_bayesian_prompts_are_the_papers_formula(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "prograd_a.npz")
    method, _, support = build(BayesCoOp, golden, samples=2)
    noisy(method)
    x, labels = support.plain[:3], support.labels[:3]
    with torch.no_grad():
        mean, log_variance = method._posterior(x)
        posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        kl = torch.distributions.kl_divergence(posterior, prior).mean(-1)
        probabilities = torch.zeros(3, 4)
        for i in range(3):
            for draw in method.draws:
                context = method.context + mean[i] + draw * (0.5 * log_variance[i]).exp()
                classes = method.task.encode_text(method.prompts, context)
                probabilities[i] += method.task.cosine_logits(x[i : i + 1], classes).softmax(-1)[0]
        expected = -(probabilities / 2)[range(3), labels].log() + 1e-3 * kl
        loss = method.loss(api.Batch(x, labels, torch.ones(3)))
    close(loss, expected.mean(), 1e-5)


@pytest.mark.parametrize(
    ("method", "hparams"),
    [
        (KgCoOp, {"epochs": 2, "batch_size": 8}),
        (KgCoOp, {"epochs": 2, "context_init": "", "class_specific": True}),
        (ProGrad, {"epochs": 2, "batch_size": 5, "class_specific": True}),
        (ProGrad, {"epochs": 2, "context_init": "", "n_ctx": 2}),
        (BiomedCoOp, {"epochs": 2, "class_specific": True}),
        (BayesCoOp, {"epochs": 1, "samples": 2, "batch_size": 4}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_cells_stack(shared: Path, method: type[api.Method], hparams: dict[str, Any]) -> None:
    case = "biomedcoop_a" if method is BiomedCoOp else "prograd_a"
    golden = load_golden(shared / "golden" / f"{case}.npz")
    texts = official_descriptions(golden) if method is BiomedCoOp else None
    ends = []
    for together in (False, True):
        cells = []
        for lr in (1.0, 0.5):
            built, recipe, support = build(method, golden, texts, **hparams)
            assert recipe is not None
            built.task = dataclasses.replace(built.task, image_backbone=shared_backbone(golden))
            noisy(built)
            recipe = dataclasses.replace(recipe, lr=recipe.lr * lr)
            support = dataclasses.replace(support, plain=support.plain * lr + lr)
            cells.append(TrainCell(built, recipe, support, generator))
        if together:
            assert can_stack(cells)
            training.train(cells)
        else:
            for cell in cells:
                training.train([cell])
        ends.append([p.detach() for cell in cells for p in cell.method.parameters()])
    for alone, with_other in zip(*ends, strict=True):
        torch.testing.assert_close(alone, with_other, rtol=1e-4, atol=2e-5)


_BACKBONES: dict[int, api.Backbone] = {}


def shared_backbone(golden: dict[str, Any]) -> api.Backbone:
    return _BACKBONES.setdefault(id(golden), golden_backbone(golden))
