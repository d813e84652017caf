"""`vipbench list methods --verbose` through the command line."""

from __future__ import annotations

from tests.conftest import Cli


def test_verbose_tells_what_a_method_trains_and_needs(cli: Cli) -> None:
    told = cli("list", "methods", "--verbose")
    assert told.returncode == 0, told.stderr
    rows = {line.split()[0]: line for line in told.stdout.splitlines() if line.startswith("  ")}
    assert rows["name"].split() == ["name", "kind", "year", "trainable", "needs", "cost", "paper"]
    # 16 context vectors of tiny-clip's text width 64; TaskRes: a residual a class, width 128.
    assert rows["coop"].split()[1:4] == ["TP", "2022", "1024"]
    assert rows["taskres"].split()[1:4] == ["AD", "2023", "768"]
    assert "symptoms" in rows["vip"]
    assert "test_images" in rows["transclip"]
