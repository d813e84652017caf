"""The card in a prompt file: its fields, a reader that trusts none of them, and a readable page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from vipbench.api import CellInfo
from vipbench.errors import UsageError, printable
from vipbench.files import open_regular
from vipbench.results.sharing.citations import credit

FORMAT = "vipbench-prompt"
VERSION = 2
# Far more than the texts of a cell and its learned parameters, at most 5 MB.
MOST_BYTES = 64 << 20


def _name(text: str) -> str:
    if not text.strip() or printable(text) != text or "\n" in text:
        raise ValueError("expected one line without control characters")
    return text


def _template(text: str) -> str:
    if text.count("{}") != 1:
        raise ValueError("expected a text with exactly one {}")
    return text


def _differ(names: tuple[str, ...]) -> tuple[str, ...]:
    if len({name.casefold().replace("_", " ") for name in names}) < len(names):
        raise ValueError("expected distinct names")
    return names


Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(_differ)]
Templates = Annotated[tuple[Annotated[str, AfterValidator(_template)], ...], Field(min_length=1)]
Texts = tuple[tuple[str, ...], ...]


class Card(BaseModel):
    """The fields of a card that are used. symptoms, descriptions: the texts of each class."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    format: Literal["vipbench-prompt"]
    version: Literal[1, 2]
    row: Name
    method: Name
    method_revision: int
    hparams: dict[str, str | int | float | bool | None]
    info: CellInfo
    seed: int
    class_names: Names
    templates: Templates
    symptoms: Texts | None
    descriptions: Texts | None
    backbone: Name
    backbone_fingerprint: Name
    dataset: Name
    dataset_fingerprint: Name
    pixels: dict[str, Any] | None = None


def read_prompt_file(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """Card and tensors. The file is read once, so they match even if it changes meanwhile.
    Raises UsageError."""
    try:
        data = _content(path)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]) if size < len(data) else {}
        card = Card.model_validate_json(header["__metadata__"]["vipbench"])
        tensors = load(data)
    except FileNotFoundError:
        raise UsageError(f"the prompt file '{path}' does not exist") from None
    except IsADirectoryError:
        raise UsageError(f"'{path}' is a folder; expected one of its prompt files") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the card"
        raise UsageError(
            f"'{path}': the card of this prompt file is incomplete or damaged: {place}: "
            f"{first['msg']}"
        ) from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"'{path}' is not a prompt file ({error}); expected one written by `vipbench prompts`"
        ) from None
    return card, tensors


def _content(path: Path) -> bytes:
    """The bytes of a prompt file. Raises OSError, or ValueError if it is too large or not a regular
    file."""
    with open_regular(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return data


def page(card: Mapping[str, Any]) -> str:
    """A readable page of a card, in Markdown."""
    shots = card["info"]["shots"]
    lines = [
        f"# {card['row']} on {card['dataset']}",
        "",
        "Research only, not for clinical use.",
        "",
        f"- backbone: {card['backbone']} (licence: {card['backbone_licence']}), fingerprint "
        f"{card['backbone_fingerprint']}",
        f"- shots: {'full' if shots is None else shots}, seed {card['seed']}",
        f"- classes: {', '.join(card['class_names'])}",
        f"- accuracy on the test split of {card['dataset']}: {card['test_accuracy']}",
        f"- data: {credit(card['dataset_citation'], card['dataset_licence'])} "
        f"{card['caption']}".rstrip(),
        f"- made with vipbench {card['vipbench']}, record {card['key']}",
    ]
    if card["contains_patient_data"]:
        lines.append(
            "- **contains-patient-data**: this file may contain features of individual images; "
            "protect it like the images"
        )
    return "\n".join(lines) + "\n"
