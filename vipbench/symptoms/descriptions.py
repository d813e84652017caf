"""Descriptions: texts about a class that hold its name, as published methods train against."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from vipbench.symptoms.load import SymptomSet, load_symptoms


def load_descriptions(path: str | PathLike[str], class_names: Sequence[str]) -> SymptomSet:
    """Read the JSON file `path` of texts that name their class. Raises SymptomError, also for a
    file that says it holds symptoms: those never stand in the descriptions' place."""
    return load_symptoms(path, class_names, plain="descriptions")
