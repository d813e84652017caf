"""Python values as JSON values. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

# Parts whose numbers may rightly be infinite (a threshold switched off, say): JSON has no word
# for it, so it is kept as the text "inf", "-inf" or "nan". Elsewhere such a number tells only that
# nothing could be measured, and becomes null.
SPELT_OUT = ("hparams", "recipe")


def dump(value: Any) -> str:
    """ASCII JSON on one line; ValueError for NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def as_json(value: Any, where: str, spelt_out: bool) -> Any:
    """`value` as a tree of JSON values: tuples, sets, paths, numpy's and pydantic's things too.

    where: the dotted name that an error gives. spelt_out: see SPELT_OUT. Raises ValueError.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # Undecodable bytes of a file name come as lone surrogates, which UTF-8 cannot hold.
        return str(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value) or where.startswith("metrics"):
            return float(value)
        return str(float(value)) if spelt_out else None
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True)
    if isinstance(value, Mapping):
        return {
            as_json(str(k), where, spelt_out): as_json(v, f"{where}.{k}", spelt_out)
            for k, v in value.items()
        }
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [as_json(v, f"{where}[{i}]", spelt_out) for i, v in enumerate(value)]
    if hasattr(value, "__fspath__"):
        return as_json(str(value), where, spelt_out)
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold")
