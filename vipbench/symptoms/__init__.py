"""Symptom sets: per class, what a person would look for in an image.

Sets shipped with vipbench lie in `data/`, one file per dataset, in the wording of vipbench's
authors; users bring their own as JSON files.
"""

from __future__ import annotations

from vipbench.symptoms.knowledge import KNOWLEDGE, replace_knowledge
from vipbench.symptoms.load import (
    SymptomError,
    SymptomSet,
    load_descriptions,
    load_symptoms,
    parse_symptoms,
    shipped_descriptions,
    shipped_symptoms,
)
from vipbench.symptoms.templates import is_template, load_templates

__all__ = [
    "KNOWLEDGE",
    "SymptomError",
    "SymptomSet",
    "is_template",
    "load_descriptions",
    "load_symptoms",
    "load_templates",
    "parse_symptoms",
    "replace_knowledge",
    "shipped_descriptions",
    "shipped_symptoms",
]
