"""`openclip:…`: names, local checkpoints, the Hub, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch

from tests import warm
from tests.backbones.clips import pictures, random_backbone, random_clip, tiny_config
from vipbench.api import Backbone
from vipbench.backbones.open_clip import openclip, register_backbones, tiny_clip
from vipbench.errors import UsageError

REPO = Path(__file__).resolve().parents[2]
ARCH = "vipbench-test-arch"


@pytest.fixture(scope="module", autouse=True)
def arch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small architecture, known to open_clip under its name."""
    folder = tmp_path_factory.mktemp("configs")
    config = {k: v for k, v in tiny_config().items() if k != "quick_gelu"}
    (folder / f"{ARCH}.json").write_text(json.dumps(config))
    (folder / f"{ARCH}-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    return ARCH


@pytest.fixture(scope="module")
def model() -> Any:
    """The model whose checkpoints the tests write; its activation is QuickGELU."""
    return random_clip(tiny_config(), seed=3)


@pytest.fixture(scope="module")
def expected() -> Backbone:
    return random_backbone(seed=3)


def same(ours: Backbone, theirs: Backbone) -> bool:
    texts = ["a nevus.", "blurry edges."]
    features = [b.encode_text(b.embed(texts)) for b in (ours, theirs)]
    pixels = torch.ones(1, 3, 32, 32)
    return torch.equal(*features) and torch.equal(
        ours.encode_image(pixels), theirs.encode_image(pixels)
    )


def test_registered_names() -> None:
    texts = {}

    def register(name: str, factory: Any, help: str = "", **more: Any) -> None:
        assert callable(factory)
        texts[name] = help

    register_backbones(register)
    assert set(texts) == {"tiny-clip", "openclip"}
    assert all(text and "\n" not in text for text in texts.values())


Save = Callable[[dict[str, torch.Tensor], Path], None]

FILES: dict[str, tuple[str, Save]] = {
    "safetensors": (
        "w.safetensors",
        lambda weights, path: safetensors.torch.save_file(weights, path),
    ),
    "state dict": ("w.pt", lambda weights, path: torch.save(weights, path)),
    "half precision": (
        "w.bin",
        lambda weights, path: torch.save({k: v.half().float() for k, v in weights.items()}, path),
    ),
    "training checkpoint": (
        "epoch_3.pt",
        lambda weights, path: torch.save(
            {"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in weights.items()}},
            path,
        ),
    ),
    "compiled": (
        "w.pt",
        lambda weights, path: torch.save({f"_orig_mod.{k}": v for k, v in weights.items()}, path),
    ),
    "compiled in part, wrapped": (
        "w.safetensors",
        lambda weights, path: safetensors.torch.save_file(
            {f"module.{k.replace('visual.', 'visual._orig_mod.')}": v for k, v in weights.items()},
            path,
        ),
    ),
    "under model": (
        "w.pt",
        lambda weights, path: torch.save({"model": weights, "optimizer": {}, "epoch": 1}, path),
    ),
    "under model_state_dict, in a module": (
        "w.pt",
        lambda weights, path: torch.save(
            {"model_state_dict": {f"model.{k}": v for k, v in weights.items()}}, path
        ),
    ),
    "as converted from OpenAI's": (
        "w.pt",
        lambda weights, path: torch.save(
            {**weights, "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}, path
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_local_checkpoints(kind: str, tmp_path: Path, model: Any, expected: Backbone) -> None:
    name, save = FILES[kind]
    path = tmp_path / name
    save({k: v.clone() for k, v in model.state_dict().items()}, path)
    backbone = openclip(f"{ARCH}+quickgelu@{path}")
    assert isinstance(backbone, Backbone)
    if kind != "half precision":
        assert same(backbone, expected)
        # The same weights are the same backbone, from whatever file.
        assert backbone.fingerprint == expected.fingerprint
    assert str(tmp_path) not in backbone.name
    assert name not in backbone.name
    assert backbone.name.startswith(f"openclip:{ARCH}@")


def save_model(model: Any, path: Path, metadata: dict[str, str] | None = None) -> Path:
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(weights, path, metadata=metadata)
    return path


def test_the_activation_must_be_known(tmp_path: Path, model: Any, expected: Backbone) -> None:
    bare = save_model(model, tmp_path / "bare.safetensors")
    with pytest.raises(UsageError, match=rf"{ARCH}\+quickgelu@{bare} or openclip:{ARCH}\+gelu@"):
        openclip(f"{ARCH}@{bare}")
    plain, quick = (openclip(f"{ARCH}+{a}@{bare}") for a in ("gelu", "quickgelu"))
    assert not same(plain, quick)
    assert plain.fingerprint != quick.fingerprint
    assert same(quick, expected)
    assert same(plain, random_backbone(seed=3, quick_gelu=False))
    # Said by the architecture's name, by the file, by a configuration beside it.
    assert same(openclip(f"{ARCH}-quickgelu@{bare}"), quick)
    for output, theirs in (("true", quick), ("False", plain)):
        saying = save_model(model, tmp_path / "said.safetensors", {"quick_gelu": output})
        assert same(openclip(f"{ARCH}@{saying}"), theirs)
    folder = tmp_path / "beside"
    folder.mkdir()
    beside = save_model(model, folder / "w.safetensors")
    config = {"model_cfg": tiny_config(), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    found = openclip(f"{ARCH}@{beside}")
    assert same(found, quick)
    assert found.fingerprint != quick.fingerprint  # it also states other means


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{arch}+gelu@{quick}", r"\(\+gelu: GELU, the file: QuickGELU\)"),
        ("{arch}-quickgelu+gelu@{quick}", "the file: QuickGELU"),
        ("{arch}+silu@{quick}", r"'silu'.*gelu, quickgelu"),
        ("{arch}+gelu@", "'@'"),
        ("{arch}+gelu@{folder}", r"folder.*\.safetensors.*\.pt"),
        ("{arch}@{folder}/none.pt", r"none\.pt"),
        ("ViT-B-61+gelu@{quick}", r"'ViT-B-61'.*'ViT-B-16'"),
        ("ViT-B-16/opnai@{quick}", r"ViT-B-16 'opnai'.*'openai'"),
        ("ViT-B-16/openai@{quick}", r"architecture.*missing \(.*, …\)"),
    ],
)
def test_local_arguments_that_are_refused(
    argument: str, message: str, tmp_path: Path, model: Any
) -> None:
    quick = save_model(model, tmp_path / "q.safetensors", {"quick_gelu": "true"})
    with pytest.raises(UsageError, match=message):
        openclip(argument.format(arch=ARCH, quick=quick, folder=tmp_path))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (None, "openclip:ARCH/TAG"),
        ("", "openclip:hf-hub:ORG/NAME"),
        ("ViT-B-61/openai", r"'ViT-B-61'.*'ViT-B-16'"),
        ("vit-b-16", "architecture"),
        ("ViT-B-16", r"openai, laion400m_e31"),
        ("ViT-B-16/", "weights"),
        ("ViT-B-16/opena", r"ViT-B-16 'opena'.*'openai'"),
        ("hf-hub:", "expected openclip:hf-hub:ORG/NAME"),
        ("hf-hub:name", "expected openclip:hf-hub:ORG/NAME"),
        ("hf-hub:a b/c d", "Hub"),
        ("local-dir:/nowhere", "/nowhere .*open_clip_config"),
    ],
)
def test_names_that_are_refused_before_any_weights(argument: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        openclip(argument)


def test_tiny_clip_takes_no_argument() -> None:
    with pytest.raises(UsageError, match=r"'tiny-clip'.*':x'"):
        tiny_clip("x")


def changed(model: Any, **values: Any) -> dict[str, Any]:
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    for name, value in values.items():
        name = name.replace("__", ".")
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    return weights


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ln_final__weight": None}, r"missing \(ln_final.weight\)"),
        ({"head__weight": torch.zeros(2)}, r"\(head.weight\)"),
        (
            {"positional_embedding": torch.zeros(16, 32)},
            r"positional_embedding \(16, 32\) .*\(77, 32\)",
        ),
        ({"text_projection": torch.full((32, 24), torch.nan)}, r"NaN .*\(text_proj"),
        ({"ln_final__weight": "ones"}, "str .*'ln_final.weight'"),
    ],
)
def test_weights_that_do_not_fit(
    values: dict[str, Any], message: str, tmp_path: Path, model: Any
) -> None:
    path = tmp_path / "w.pt"
    torch.save(changed(model, **values), path)
    with pytest.raises(UsageError, match=message):
        openclip(f"{ARCH}+gelu@{path}")


def test_a_scale_that_is_no_logarithm(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "w.pt"
    torch.save(changed(model, logit_scale=torch.tensor(14.2857)), path)
    (printed,) = openclip(f"{ARCH}+gelu@{path}").notes
    assert "14.2857" in printed
    torch.save(changed(model, logit_scale=torch.tensor(100.0)), path)
    with pytest.raises(UsageError, match=r"logit_scale.* 100,"):
        openclip(f"{ARCH}+gelu@{path}")


def test_two_sets_of_weights_in_one_file(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": model.state_dict()}, path)
    with pytest.raises(UsageError, match=r"'state_dict' .*'state_dict_ema'"):
        openclip(f"{ARCH}+gelu@{path}")


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch.save", "pickle"])
def test_a_payload_is_refused_and_nothing_runs(form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "w.pt"
    content = {"ln_final.weight": torch.ones(32), "extra": Payload(mark)}
    if form == "torch.save":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UsageError, match="objects"):
        openclip(f"{ARCH}+gelu@{path}")
    assert not mark.exists()
    torch.load(path, weights_only=False) if form == "torch.save" else pickle.loads(
        path.read_bytes()
    )
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
def test_torchscript_is_refused_and_converts_as_reported(
    tmp_path: Path, model: Any, expected: Backbone
) -> None:
    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in model.state_dict().items():
                self.register_buffer(name.replace(".", "__"), value)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    path = tmp_path / "ViT.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is on its way out
        torch.jit.script(Archive()).save(str(path))
    with pytest.raises(UsageError, match="TorchScript archive") as refused:
        openclip(f"{ARCH}+quickgelu@{path}")
    command = next(line for line in str(refused.value).splitlines() if "python -c" in line)
    code = command.split('"')[1]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    converted = tmp_path / "ViT-weights.pt"
    assert str(converted) in str(refused.value)
    # The archive of this test had to spell the names without dots.
    weights = torch.load(converted, weights_only=True)
    torch.save({k.replace("__", "."): v for k, v in weights.items()}, converted)
    assert same(openclip(f"{ARCH}+quickgelu@{converted}"), expected)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_damaged_files(name: str, damage: str, tmp_path: Path, model: Any) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(model.state_dict(), path)
    else:
        save_model(model, path)
    whole = path.read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "empty": b"", "noise": bytes(range(256)) * 20}
    path.write_bytes(damaged[damage])
    with pytest.raises(UsageError, match=r"checkpoint .*(damaged|plain)"):
        openclip(f"{ARCH}+gelu@{path}")


def test_a_file_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save([torch.ones(3)], path)
    with pytest.raises(UsageError, match="a list"):
        openclip(f"{ARCH}+gelu@{path}")


def test_a_broken_configuration_beside_the_weights(tmp_path: Path, model: Any) -> None:
    path = save_model(model, tmp_path / "w.safetensors")
    for text, message in (
        ("{", "JSON"),
        ("[]", "list"),
        ("{}", "no 'model_cfg'"),
    ):
        (tmp_path / "open_clip_config.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            openclip(f"{ARCH}+gelu@{path}")


def test_a_real_architecture(tmp_path: Path) -> None:
    config = open_clip.get_model_config("ViT-B-32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config, quick_gelu=True).eval()
    path = save_model(model, tmp_path / "b32.safetensors")
    # The tag says what OpenAI's weights were trained with, and their preprocessing.
    backbone = openclip(f"ViT-B-32/openai@{path}")
    assert (backbone.dim, backbone.width, backbone.text_layers) == (512, 512, 12)
    assert (backbone.vision_width, backbone.vision_layers, backbone.image_size) == (768, 12, 224)
    texts = ["a photo of a nevus.", "blurry, or jagged edges"]
    torch.testing.assert_close(
        backbone.encode_text(backbone.embed(texts)),
        model.encode_text(open_clip.tokenize(texts)),
        atol=1e-5,
        rtol=1e-5,
    )


PREPROCESS = {
    "mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear", "resize_mode": "longest",
    "fill_color": 7,
}  # fmt: skip


@pytest.mark.parametrize("form", ["folder", "file", "tag"])
@torch.no_grad()
def test_texts_and_any_images_equal_open_clips(
    form: str, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through open_clip's own door, with its tokenizer and transform."""
    if form == "folder":
        save_model(model, tmp_path / "open_clip_model.safetensors")
        stated = {"model_cfg": tiny_config(), "preprocess_cfg": PREPROCESS}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(stated))
        ours, theirs = f"local-dir:{tmp_path}", (f"local-dir:{tmp_path}", None)
    elif form == "file":
        path = save_model(model, tmp_path / "w.safetensors")
        ours, theirs = f"{ARCH}-quickgelu@{path}", (f"{ARCH}-quickgelu", str(path))
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        facts = {"hf_hub": "org/tagged/", "quick_gelu": True, **PREPROCESS}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, ARCH, {"mine": facts})
        repo, commit = tmp_path / "models--org--tagged", "0" * 40
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        (repo / "snapshots" / commit).mkdir(parents=True)
        path = save_model(model, repo / "snapshots" / commit / "open_clip_model.safetensors")
        # The library reads the cache of a process, not of a test: it gets the file itself.
        ours, theirs = f"{ARCH}/mine", (ARCH, str(path))
    name, weights = theirs
    options = {"force_quick_gelu": True} if form == "tag" else {}
    reference, transform = open_clip.create_model_from_pretrained(name, weights, **options)
    if form == "tag":
        settings = open_clip.transform.PreprocessCfg(**{**PREPROCESS, "size": 32})
        transform = open_clip.transform.image_transform_v2(settings, is_train=False)
    backbone = openclip(ours)
    texts = ["a photo of a Melanoma.", "Clark's nevus  (12 mm), x-ray", "lung"]
    pixels = torch.stack([backbone.preprocess(image) for image in pictures()])
    assert torch.equal(pixels, torch.stack([transform(image) for image in pictures()]))
    for found, expected in (
        (backbone.encode_text(backbone.embed(texts)),
         reference.encode_text(open_clip.get_tokenizer(name)(texts))),
        (backbone.encode_image(pixels), reference.encode_image(pixels)),
    ):  # fmt: skip
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_tokenizer_of_the_hub(tmp_path: Path) -> None:
    """Loaded from a local folder here: framing, padding and cleaning are read off it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "nevus", "blurry", "edges", "."]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", **special).save_pretrained(
        tmp_path / "tokenizer"
    )
    config = tiny_config(
        custom_text=True,
        text_cfg={
            "context_length": 12,
            "vocab_size": 9,
            "no_causal_mask": True,
            "pool_type": "last",
            "hf_tokenizer_name": str(tmp_path / "tokenizer"),
        },
    )
    (tmp_path / "hub-words.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "hub-words.json")
    model = random_clip(config)
    path = save_model(model, tmp_path / "w.safetensors")
    backbone = openclip(f"hub-words+quickgelu@{path}")
    texts = ["a  nevus .", "blurry edges"]
    tokens = open_clip.get_tokenizer("hub-words")(texts)
    prompts = backbone.embed(texts)
    assert prompts.tokens.tolist() == [[1, 4, 5, 8, 2], [1, 6, 7, 2, 0]]
    torch.testing.assert_close(
        backbone.encode_text(prompts), model.encode_text(tokens), atol=1e-5, rtol=1e-5
    )
    pieces = backbone.embed([("", "nevus."), ("", "blurry edges")])
    assert pieces.gaps is not None
    assert pieces.gaps.tolist() == [[1], [1]]
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(UsageError, match=r"tokenizer.*hub-words"):
        openclip(f"hub-words+quickgelu@{path}")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a client needs to fetch files."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def do_GET(self) -> None:
        self.reply(body=True)

    def reply(self, body: bool) -> None:
        self.asked.append(self.path)
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"abc"' if content is None else f'"{len(content)}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Hub.files, Hub.asked = {}, []
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import sys
from vipbench.errors import UsageError
from vipbench.backbones.open_clip import openclip
for argument in sys.argv[1:]:
    try:
        backbone = openclip(argument)
        print(backbone.name, backbone.fingerprint, backbone.licence)
    except UsageError as error:
        print("UsageError:", error)
"""


def in_process(*arguments: str, home: Path, **env: str) -> list[str]:
    """A line for each `openclip(argument)`, in a process with `home` as Hugging Face's."""
    mine = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    mine |= {"HF_HOME": str(home), "PYTHONPATH": str(REPO), "HF_HUB_DISABLE_XET": "1", **env}
    mine[warm.WARM] = "1"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=mine,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


REFUSED = "timm/vit_base_patch16_clip_224.openai"


def assert_says_how_to_bring_it(line: str, why: str, home: Path) -> None:
    assert line.startswith("UsageError: open_clip_model.safetensors or")
    assert f"of '{REFUSED}' is not in the Hugging Face cache ({home}" in line
    assert why in line
    assert f"`hf download {REFUSED}`" in line
    assert "openclip:ViT-B-16/openai@PATH" in line


def test_a_model_of_the_hub(hub: str, tmp_path: Path, model: Any, expected: Backbone) -> None:
    path, home = save_model(model, tmp_path / "w.safetensors"), tmp_path / "home"
    folder = "/org/name/resolve/main"
    config = {"model_cfg": tiny_config(), "preprocess_cfg": {"interpolation": "bicubic"}}
    Hub.files[f"{folder}/open_clip_config.json"] = json.dumps(config).encode()
    Hub.files[f"{folder}/open_clip_model.safetensors"] = path.read_bytes()
    found, missing = in_process("hf-hub:org/name", "hf-hub:org/no", home=home, HF_ENDPOINT=hub)
    assert found.split(" ", 2) == [
        "openclip:hf-hub:org/name",
        expected.fingerprint,
        "see huggingface.co/org/name",
    ]
    assert re.search("UsageError: open_clip_config.json.*'org/no'", missing)
    assert hub in missing
    # From then on the cache serves, without a question to the Hub.
    Hub.asked.clear()
    again, refused = in_process(
        "hf-hub:org/name", "ViT-B-16/openai", home=home, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1"
    )
    assert again == found
    assert Hub.asked == []
    assert_says_how_to_bring_it(refused, "HF_HUB_OFFLINE forbids", home)


def test_weights_out_of_reach(tmp_path: Path) -> None:
    [line] = in_process("ViT-B-16/openai", home=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    why = "no connection to download it: 127.0.0.1:9"
    assert_says_how_to_bring_it(line, why, tmp_path)
