"""`vipbench list methods --verbose` through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.conftest import Cli


def test_verbose_tells_what_a_method_trains_and_needs(cli: Cli) -> None:
    listing = cli("list", "methods", "--verbose")
    assert listing.returncode == 0, listing.stderr
    rows = {line.split()[0]: line for line in listing.stdout.splitlines() if line.startswith("  ")}
    heads = ["name", "kind", "year", "trainable", "needs", "validation", "cost", "paper"]
    assert rows["name"].split() == heads
    # 16 context vectors of tiny-clip's text width 64; TaskRes: a residual a class, width 128.
    assert rows["coop"].split()[1:4] == ["TP", "2022", "1024"]
    assert rows["taskres"].split()[1:4] == ["AD", "2023", "768"]
    # 6 classes of width 128, the linear probe's with a bias each.
    assert rows["cross-modal"].split()[3] == "768"
    assert rows["linear-probe"].split()[3] == "774"
    columns = {head: rows["name"].index(f"{head} ") for head in ("needs", "validation", "cost")}

    def field(name: str, head: str) -> str:
        return re.split(r"  +", rows[name][columns[head] :])[0]

    assert field("vip", "needs") == "text, symptoms"
    assert field("transclip", "needs") == "text, all test images"
    assert field("maple", "needs") == "text, images, ViT"
    assert field("biomedcoop", "needs") == "text, descriptions"
    assert field("supervised", "needs") == "images"
    assert field("linear-probe", "needs") == "-"
    assert field("tip-adapter", "validation") == "full"
    assert field("lp++", "validation") == "min(k,4)"
    assert field("coop", "validation") == "-"
    assert field("bayes-coop", "cost") == "hours"


def test_a_kept_catalogue_is_used_while_nothing_has_changed(cli: Cli, tmp_path: Path) -> None:
    def listed() -> str:
        done = cli("list", "datasets", env={"VIPBENCH_CACHE": str(tmp_path / "cache")})
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = listed()
    assert "drawn skin lesions" in first
    file = tmp_path / "cache" / "catalogue-plain.json"
    text = file.read_text()
    file.write_text(text.replace("drawn skin lesions", "the kept answer"))
    assert listed() == first.replace("drawn skin lesions", "the kept answer")
    # A file of the package changed since: another state.
    state = json.loads(text)["state"]
    file.write_text(file.read_text().replace(state, "0" * 64))
    assert listed() == first
    assert json.loads(file.read_text())["state"] == state
    file.write_text(text[:100])
    assert listed() == first
