"""The first hour of a new user, through real processes: a table with images in another place, an
own method in a file, a table for a paper, a prediction; long: the README's commands too."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()
CLASSES = ("article", "llncs", "IEEEtran")
METHOD = re.search(r"^```python\n(\"\"\"Proto-CLIP.*?)^```$", README, re.M | re.S)
LONG = pytest.param("long", marks=pytest.mark.reliability)


def call(cli: Cli, home: Path, *args: str) -> str:
    done = cli(*args, cwd=home)
    assert done.returncode == 0, f"{args}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project with a table and a method; its images lie on a share."""
    home, share = tmp_path / "project", tmp_path / "share" / "scans"
    (home / "my-plugins").mkdir(parents=True)
    share.mkdir(parents=True)
    assert METHOD is not None
    (home / "my-plugins" / "proto_clip.py").write_text(METHOD[1])
    rng = np.random.default_rng(0)
    rows = ["path,label,split,group"]
    for split, count in (("train", 4), ("val", 2), ("test", 12)):
        for label, name in enumerate(("dark", "bright")):
            for i in range(count):
                path = f"{split}-{name}-{i}.png"
                values = rng.integers(0, 90, (32, 32, 3)) + 150 * label
                Image.fromarray(values.astype(np.uint8)).save(share / path)
                rows.append(f"{path},{name},{split},patient {split}{name}{i // 2}")
    (home / "study.csv").write_text("\n".join(rows))
    return home


@pytest.mark.parametrize("form", ["short", LONG])
def test_from_a_table_to_a_paper_and_a_prediction(form: str, cli: Cli, home: Path) -> None:
    share = str(home.parent / "share" / "scans")
    methods = "zero-shot,ncm,proto-clip" if form == "short" else "zero-shot,ncm,coop,proto-clip"
    printed = call(
        *(cli, home, "run", "--datasets", "csv:study.csv", "--images", share),
        *("--backbones", "tiny-clip", "--plugins-dir", "my-plugins", "--methods", methods),
        *("--shots", "1,2", "--seeds", "1-3", "--views", "none", "--out", "results"),
    )
    assert "proto-clip" in printed
    call(cli, home, "prompts", "results", "-o", "prompts", "--patient-data", "--allow-code")
    prompt = min((home / "prompts").glob("*ncm*.safetensors"), default=None) or min(
        (home / "prompts").glob("*.safetensors")
    )
    predicted = call(cli, home, "predict", str(prompt), share, "--plugins-dir", "my-plugins")
    assert "bright" in predicted
    if form == "short":
        return
    latex = [
        call(cli, home, "table", "results", "--format", "latex", *more)
        for more in ((), ("--preset", "comparison"))
    ]
    plain = call(cli, home, "table", "results", "--format", "csv", "--metric", "accuracy")
    rows = [row for row in csv.DictReader(io.StringIO(plain)) if row["method"] == "proto-clip"]
    assert len(rows) == 2
    assert all(f"{100 * float(row['mean']):.1f}" in latex[0] for row in rows)
    call(cli, home, "plot", "results", "-o", "curves.pdf")
    call(cli, home, "plot", "results", "--kind", "training", "-o", "training.png")
    assert "proto-clip" in call(
        cli, home, "compare", "proto-clip", "ncm", "results", "--shots", "2"
    )
    compile_in_three_classes(latex, home)


@pytest.mark.reliability
def test_the_commands_of_the_readme(cli: Cli, home: Path) -> None:
    """Those on the demo, with few methods; `.ci/run` runs the whole demo."""
    call(
        *(cli, home, "run", "--methods", "linear-probe,vip[epochs=2]", "--datasets", "synthderm"),
        *("--backbones", "tiny-clip", "--shots", "16", "--seeds", "1-3", "--views", "none"),
    )
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, re.M | re.S)
    commands = [line for block in blocks for line in block.splitlines()]
    shown = [line for line in commands if re.match(r"vipbench (plot|compare|table) ", line)]
    assert len(shown) == 4
    for line in shown:
        words = line.replace("compare vip ", "compare vip[epochs=2] ").split()
        assert call(cli, home, *words[1:])


def compile_in_three_classes(tables: list[str], folder: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None or shutil.which("kpsewhich") is None:
        return
    for name in CLASSES:
        found = subprocess.run(["kpsewhich", f"{name}.cls"], capture_output=True, check=False)
        if found.returncode:
            continue
        packages = sorted({p for t in tables for p in re.findall(r"\\usepackage\S*?\{\S+?\}", t)})
        body = "\n".join(
            line for t in tables for line in t.splitlines() if not line.startswith("%")
        )
        option = "[conference]" if name == "IEEEtran" else ""
        lines = [rf"\documentclass{option}{{{name}}}", *packages, r"\usepackage{booktabs}"]
        lines += [r"\begin{document}", body, r"\end{document}"]
        (folder / "paper.tex").write_text("\n".join(lines))
        done = subprocess.run(
            [program, "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull" not in done.stdout
