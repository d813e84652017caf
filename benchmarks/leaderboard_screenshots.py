"""Make the leaderboard's screenshots in docs/img anew, in a headless Chromium.

    python benchmarks/leaderboard_screenshots.py DIR [DIR...]

DIR: results folders, such as `vipbench run --out DIR` makes of the demo.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.browser import Browser, find_chromium
from vipbench.results.leaderboard.entries import leaderboard
from vipbench.results.leaderboard.gather import Folders
from vipbench.results.leaderboard.page import render_page, write_page

OUT = Path(__file__).resolve().parents[1] / "docs" / "img"
CHOOSE = """document.getElementById("shots").value = "16";
document.getElementById("controls").dispatchEvent(new Event("input"))"""
OPEN = "document.querySelector('[data-section=methods] button.value').click()"


def main() -> None:
    """Write leaderboard-light.png, -dark, -phone and -provenance."""
    program = find_chromium()
    if program is None or len(sys.argv) < 2:
        sys.exit(__doc__)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, Browser(program) as browser:
        with Folders(map(Path, sys.argv[1:])) as folders:
            page = write_page(Path(name), render_page(leaderboard(folders.gather())))
        browser.open(page, 1100, 1280)
        browser.js(CHOOSE)
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            browser.js(f"new Promise((d) => setTimeout(() => d('{scheme}'), 300))")
            browser.screenshot(OUT / f"leaderboard-{scheme}.png")
        browser.prefer("light")
        browser.js(OPEN)
        browser.js("new Promise((d) => setTimeout(d, 300))")
        browser.screenshot(OUT / "leaderboard-provenance.png")
        browser.js("document.getElementById('provenance').close()")
        browser.size(390, 844, mobile=True)
        browser.screenshot(OUT / "leaderboard-phone.png")
    for path in sorted(OUT.glob("leaderboard-*.png")):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
