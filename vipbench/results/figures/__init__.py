"""Figures from records, as PDF, SVG or PNG."""

from __future__ import annotations

from vipbench.results.figures.draw import KINDS, SUFFIXES, draw, save

__all__ = ["KINDS", "SUFFIXES", "draw", "save"]
