"""The symptom file that says where its texts come from. No torch here.

    {"format": "vipbench-symptoms", "version": 1, "kind": "symptoms" or "descriptions",
     "classes": {"class name": ["text", …], …}, "source": {…}, "sha256": "…"}

`source`: by ("person" or "model"), model, date, prompts, images_seen (class -> labelled training
images that the model saw), … The plain form `{"class name": ["text", …]}` of ViP's program loads
as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vipbench.errors import UsageError

FORMAT = "vipbench-symptoms"
VERSION = 1
KINDS = ("symptoms", "descriptions")


class SymptomError(UsageError):
    """A symptom file cannot be used; the message names file, class and symptom."""


def opened(
    document: dict[str, Any], what: str, plain: str = "symptoms"
) -> tuple[dict[str, Any], str, Mapping[str, Any], str | None]:
    """Classes, kind, source and stated digest of either form; `plain`: the kind of the form that
    does not say it. Raises SymptomError."""
    if document.get("format") != FORMAT:
        return document, plain, {}, None
    version = document.get("version")
    if version != VERSION:
        raise SymptomError(f"{what} has version {version!r}; this vipbench reads version {VERSION}")
    kind, classes = document.get("kind", "symptoms"), document.get("classes")
    source, stated = document.get("source", {}), document.get("sha256")
    if kind not in KINDS:
        raise SymptomError(f"{what}: 'kind' is {kind!r}; expected one of {', '.join(KINDS)}")
    if not isinstance(classes, dict):
        raise SymptomError(
            f'{what} has no \'classes\'; expected {{"class name": ["text", ...], ...}} there'
        )
    if not isinstance(source, dict):
        raise SymptomError(f"{what}: 'source' must be keys and values, got {source!r}")
    if not (stated is None or isinstance(stated, str)):
        raise SymptomError(f"{what}: 'sha256' must be text, got {stated!r}")
    return classes, kind, source, stated


def written(classes: Mapping[str, Any], sha256: str, kind: str, source: Mapping[str, Any]) -> str:
    """The file's text."""
    document = {"format": FORMAT, "version": VERSION, "kind": kind, "source": dict(source)}
    document |= {"classes": {k: list(v) for k, v in classes.items()}, "sha256": sha256}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
