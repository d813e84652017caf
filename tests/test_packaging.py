"""The wheel carries what it needs and works outside the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel; from a copy, since a build leaves its folders beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(REPO / name, source)
    shutil.copytree(
        REPO / "vipbench", source / "vipbench", ignore=shutil.ignore_patterns("__pycache__")
    )
    out = tmp_path_factory.mktemp("dist")
    # Without isolation, so that no index is asked: setuptools comes with the test extra.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_it_carries_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    code = {name for name in sizes if name.startswith("vipbench/")}
    expected = {
        str(file.relative_to(REPO))
        for file in (REPO / "vipbench").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert code == expected
    for name in ("vipbench/py.typed", "vipbench/suites/demo.yaml"):
        assert name in code
    assert any(name.startswith("vipbench/symptoms/data/") for name in code)
    weights = [n for n in code if n.endswith(".safetensors")]
    assert weights
    assert sum(sizes[name] for name in weights) <= 8_000_000
    assert {name.split("/")[0] for name in sizes} == {"vipbench", *_metadata(sizes)}
    assert any(name.endswith("licenses/LICENSE") for name in sizes)


def _metadata(names: dict[str, int]) -> set[str]:
    return {name.split("/")[0] for name in names if ".dist-info/" in name}


def test_it_works_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {k: v for k, v in os.environ.items() if not k.startswith("VIPBENCH_")}
    env |= {"PYTHONPATH": str(site), "VIPBENCH_CACHE": str(tmp_path / "cache")}

    def vipbench(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "vipbench", *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import vipbench; print(vipbench.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    assert "tiny-clip" in vipbench("list")
    # The bundled weights, data and symptoms, without the clone.
    out = vipbench(
        *("run", "--methods", "symptoms-mean", "--datasets", "synthderm"),
        *("--backbones", "tiny-clip", "--out", "results"),
    )
    assert "symptoms-mean" in out
