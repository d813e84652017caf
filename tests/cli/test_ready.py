"""`vipbench fetch`, `vipbench doctor` and `--offline`, against a server of the test's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import safetensors.torch

from tests.backbones.clips import random_clip, tiny_config
from tests.backbones.hub_models import save_clip
from tests.fetching.server import Site, serving
from tests.reliability.test_privacy import BLOCK

Cli = Callable[..., "CompletedProcess[str]"]

PLUGIN = '''
"""A dataset that is fetched: one .npz file of the web."""
import os
from pathlib import Path

import vipbench
from vipbench import api
from vipbench.datasets.npz import NpzDataset


class Far(NpzDataset):
    """Two classes."""

    def __init__(self, argument):
        super().__init__("far.npz")
        self.class_names = ("dark", "bright")
        self.licence = "CC BY-NC 4.0"

    def files(self, root):
        url = os.environ["FAR_URL"]
        return [api.WebFile(url, (root or Path("data")) / "far.npz", os.environ["FAR_DIGEST"],
                            self.licence, hint="Or ask its author.")]

    def locate(self, root):
        return super(NpzDataset, self).locate(root)

    def _names(self, path, members, card):
        return self.class_names


@vipbench.hookimpl
def register_datasets(register):
    register("far", Far, known=["far"])
'''


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


@pytest.fixture
def env(site: Site, tmp_path: Path) -> dict[str, str]:
    """An empty home, and the Hub on the site."""
    return {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": site.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def put_openclip(site: Site, folder: Path) -> int:
    """A model of open_clip's form whose text tower's tokenizer is in another repository; returns
    the size of its weights."""
    model = random_clip(tiny_config(), seed=3)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "w.safetensors")
    save_clip(folder / "clip")
    config = tiny_config(text_cfg={"hf_tokenizer_name": "org/words"})
    content = (folder / "w.safetensors").read_bytes()
    site.put(
        "org/model",
        open_clip_config__json=json.dumps({"model_cfg": config}).encode(),
        open_clip_model__safetensors=content,
    )
    for file in (folder / "clip").iterdir():
        if file.suffix in (".json", ".txt") and "config" not in file.name:
            site.files[f"/org/words/resolve/main/{file.name}"] = file.read_bytes()
    settings = (folder / "clip" / "tokenizer_config.json").read_bytes()
    site.files["/org/words/resolve/main/tokenizer_config.json"] = settings
    return len(content)


def test_a_fetched_run_needs_no_connection(
    cli: Cli, site: Site, env: dict[str, str], toy: Path, tmp_path: Path
) -> None:
    from hashlib import sha256

    content = (toy / "toy.npz").read_bytes()
    site.files["/far.npz"] = content
    size = put_openclip(site, tmp_path)
    plugins, data = tmp_path / "plugins", tmp_path / "data"
    plugins.mkdir()
    (plugins / "far.py").write_text(PLUGIN)
    env |= {
        "FAR_URL": f"{site.url}/far.npz",
        "FAR_DIGEST": f"sha256:{sha256(content).hexdigest()}",
        "VIPBENCH_CACHE": str(tmp_path / "features"),
        "VIPBENCH_ALLOW_CODE": "1",
    }
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "methods: [zero-shot, linear-probe]\nbackbones: ['openclip:hf-hub:org/model']\n"
        "datasets: [far]\nshots: [1]\nseeds: [1]\nviews: none\n"
        f"data_root: {data}\nplugins_dir: {plugins}\nout: out\n"
    )
    # Nothing is there, and nothing may be fetched: said with what brings it.
    refused = cli(
        *("run", "--backbones", "openclip:hf-hub:org/model", "--methods", "zero-shot"),
        *("--datasets", "synthderm", "--offline"),
        env=env,
    )
    assert refused.returncode == 2
    assert "VIPBENCH_OFFLINE" in refused.stderr
    assert "`vipbench fetch openclip:hf-hub:org/model`" in refused.stderr
    missing = cli("fetch", suite, "--offline", env=env)
    assert missing.returncode == 1
    assert "far.npz" in missing.stdout
    assert site.asked == []

    # The weights' connection breaks half-way; the same command resumes.
    site.stop_after = size // 2
    broken = cli("fetch", suite, env=env)
    assert broken.returncode == 1
    assert "command" in broken.stdout
    site.down, site.stop_after = False, None
    site.asked.clear()
    fetched = cli("fetch", suite, env=env)
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert site.ranges() == [f"bytes={size // 2}-"]
    assert "far: licence: CC BY-NC 4.0" in fetched.stdout
    assert "licence: see huggingface.co/org/model" in fetched.stdout
    for what in ("open_clip_model.safetensors", "tokenizer.json of org/words", "far.npz"):
        assert f"{what}" in fetched.stdout

    # A damaged blob is noticed, and replaced.
    [blob] = (tmp_path / "hf/hub/models--org--model/snapshots").glob("*/*.safetensors")
    blob = blob.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    mended = cli("fetch", suite, env=env)
    assert mended.returncode == 0
    assert re.search("open_clip_model.safetensors: .*SHA-256", mended.stdout)
    assert len(blob.read_bytes()) == size

    # The run itself, with every socket blocked in driver and worker, and no server any more.
    site.down = True
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).resolve().parents[2])])
    done = cli("run", suite, "--out", tmp_path / "out", "--offline", env=env | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BLOCKED" not in done.stdout + done.stderr
    assert "linear-probe" in done.stdout


REACH = '''
import socket
import vipbench
from vipbench import api

class Reach(api.Method):
    """Opens a connection."""
    name = "reach"
    kind = "TF"
    uses_support = False

    def forward(self, x):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
        return x[:, : self.task.n_classes]

@vipbench.hookimpl
def register_methods(register):
    register(Reach)
'''


def test_offline_holds_for_plugins_too(cli: Cli, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "reach.py").write_text(REACH)
    run = (
        *("run", "--methods", "reach", "--datasets", f"npz:{toy / 'toy.npz'}", "--backbones"),
        *("tiny-clip", "--plugins-dir", tmp_path, "--out", tmp_path / "out"),
    )
    done = cli(*run, env={"VIPBENCH_OFFLINE": "1"})
    assert done.returncode == 1
    assert re.search("127.0.0.1:9 .*VIPBENCH_OFFLINE", done.stdout)


def test_medmnist_comes_from_a_mirror_and_is_checked(cli: Cli, site: Site, tmp_path: Path) -> None:
    env = {"VIPBENCH_MEDMNIST_URL": f"{site.url}/files"}
    site.files["/files/breastmnist_64.npz"] = b"something else"
    what = ("medmnist:breastmnist_64", "derm7pt", "pneumonia", "synthderm", "medsiglip", "conch")
    env |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = cli("fetch", *what, "--data-root", tmp_path, env=env)
    assert done.returncode == 2
    output = {line.partition(": ")[0]: line for line in done.stdout.splitlines()}
    assert "medmnist:breastmnist_64: licence: CC BY 4.0" in done.stdout
    assert "742edef2a1fd1524b2efff4bd7ba9364" in done.stdout
    assert "https://zenodo.org/records/10519652" in done.stdout
    assert list((tmp_path / "medmnist").iterdir()) == []
    assert re.search(r"https://derm.cs.sfu.ca \(licence: ", output["derm7pt"])
    assert "https://data.mendeley.com" in output["pneumonia"]
    assert output["synthderm"].startswith("synthderm: ")
    assert "medsiglip: licence: Health AI Developer Foundations" in done.stdout
    assert "127.0.0.1:9" in output["medsiglip"]
    assert "vipbench" in output["conch"]
    unknown = cli("fetch", "derm7pr")
    assert unknown.returncode == 2
    assert "'derm7pt'" in unknown.stderr


def test_doctor(cli: Cli, toy: Path, tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path)}
    well = cli("doctor", "--data-root", tmp_path, env=env)
    assert well.returncode == 0, well.stdout
    for output in (
        "vipbench 0", "torch 2", "caches", "there    tiny-clip",
        "there    synthderm", "missing  openclip:ViT-B-16/openai",
        "vipbench fetch openclip:ViT-B-16/openai", "missing  medmnist:pathmnist",
        "likewise medmnist:pathmnist_64", "missing  derm7pt", "missing  pneumonia",
    ):  # fmt: skip
        assert output in well.stdout
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "good.py").write_text(REACH)
    npz = f"npz:{toy / 'toy.npz'}"
    env |= {"VIPBENCH_CUDA_GRAPHS": "1", "VIPBENCH_DECODERS": "3"}
    ill = cli("doctor", npz, "tiny-clip", "csv:nowhere.csv", "--plugins-dir", tmp_path, env=env)
    assert ill.returncode == 1
    assert "plugin 'bad'" in ill.stdout
    assert "broken: plugin 'bad'" in ill.stdout
    assert "plugin 'good'" in ill.stdout
    assert f"there    {npz}" in ill.stdout
    assert "medmnist" not in ill.stdout
    assert "missing  csv:nowhere.csv" in ill.stdout
    for output, variable, facts in (
        (well, "CUDA_GRAPHS", ("graphs are off", "is not set")),
        (ill, "CUDA_GRAPHS", ("graphs are on", "=1")),
        (well, "DECODERS", ("processes: off", "is not set")),
        (ill, "DECODERS", ("3 for", "=3")),
    ):
        [found] = [row for row in output.stdout.splitlines() if f"VIPBENCH_{variable}" in row]
        assert all(fact in found for fact in facts)
