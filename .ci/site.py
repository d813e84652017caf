"""A hook of mkdocs: links that lead out of docs/ lead to the repository."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(\]\()(\.\./[^)\s]+)(\))")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """`[x](../README.md)` -> the file in the repository."""

    def moved(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", found[2]))
        return f"{found[1]}{config['repo_url']}/blob/main/{path}{found[3]}"

    return _LINK.sub(moved, markdown)
