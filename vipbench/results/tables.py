"""Tables: `comparison` makes one from records, `render` writes it down. No torch here."""

from __future__ import annotations

from vipbench.results.comparison import MAJORITY, comparison
from vipbench.results.render import FORMATS, render
from vipbench.results.table import Column, Entry, Row, Table, TableError

__all__ = [
    "FORMATS",
    "MAJORITY",
    "Column",
    "Entry",
    "Row",
    "Table",
    "TableError",
    "comparison",
    "render",
]
