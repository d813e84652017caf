"""Tables: `comparison` makes one from records, `render` writes it down."""

from __future__ import annotations

from vipbench.results.records.comparable import TableError
from vipbench.results.tables.comparison import MAJORITY, comparison
from vipbench.results.tables.render import FORMATS, render
from vipbench.results.tables.table import Column, Entry, Row, Table

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
