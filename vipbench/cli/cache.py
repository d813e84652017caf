"""`vipbench cache`: the options, and what the commands on the feature cache do."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from vipbench.cli.exit_codes import OK

cache_app = typer.Typer(help="Show or clear the feature cache.")


@cache_app.command()
def info() -> int:
    """Show the cache's folder, size limit and contents."""
    from vipbench.engine.features.cache import cache_limit, shelves
    from vipbench.engine.kept import cache_folder
    from vipbench.fetching.download import size
    from vipbench.text import columns

    found = shelves()
    total = sum(shelf.bytes for shelf in found)
    print(f"folder  {cache_folder()}   (VIPBENCH_CACHE names another)")
    print(f"size    {size(total)} of {size(cache_limit())}   (VIPBENCH_CACHE_GB)")
    if found:
        rows = [("backbone", "dataset", "split", "view", "size", "last used")]
        for shelf in reversed(found):
            part = shelf.parts
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(shelf.used))
            names = (str(part.get("backbone", ""))[:12], str(part.get("dataset", ""))[:12])
            view = part.get("view", "")
            seed = f"training, seed {view[2]}" if isinstance(view, list) else str(view)
            split = "texts" if "texts" in part else str(part.get("split", ""))
            rows.append((*names, split, seed, size(shelf.bytes), used))
        for line in columns(rows):
            print(line)
    return OK


@cache_app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.", show_default=False)] = False,
) -> int:
    """Remove all cached features; a later run encodes images and texts again."""
    from vipbench.engine import kept
    from vipbench.engine.features import cache
    from vipbench.fetching.download import size

    if not yes:
        typer.confirm(f"Remove everything in {kept.cache_folder()}?", abort=True)
    kept.clear()
    print(f"{size(cache.clear())} freed")
    return OK
