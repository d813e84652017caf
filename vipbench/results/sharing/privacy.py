"""What leaves a results folder: pseudonyms for images and patients, no paths."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vipbench.errors import UsageError
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.protocol_names import ARROW, split_part
from vipbench.results.records.record import PATH, Record

SALT_FILE = "pseudonyms.key"
LEFT_OUT = "left out of exports, since it may name files or images"
# A path: from the root, the home or a drive, or a file: address; what follows a letter or a colon,
# as in "and/or" and "https://", is none.
_PATH = re.compile(
    r"(?<![\w:/.\\])(?:file:/+|~[\w.-]*[/\\]|[A-Za-z]:[/\\]|\\\\|/(?=[^\s/]))[^\s'\"<>|,;)\]}]*"
)


# A dataset of the Hugging Face Hub: a name that everybody knows, and no path.
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?(@[\w.-]+)?")


def scrub(value: Any) -> Any:
    """`value`, a tree of JSON values, with `<path>` in the place of every path."""
    if isinstance(value, str):
        return _PATH.sub(PATH, value)
    if isinstance(value, dict):
        return {scrub(k): scrub(v) for k, v in value.items()}
    if isinstance(value, list):
        return [scrub(v) for v in value]
    return value


def public_source(source: str, root: Path | None) -> str:
    """`NAME[:ARG]` with PATH for an ARG that is one: records travel, and paths are nobody's
    business."""
    name, colon, argument = source.partition(":")
    folders = [Path(), *([root] if root is not None else [])]
    there = any((folder / argument).exists() for folder in folders)
    path = there or any(char in argument for char in "/\\.~")
    if name == "hf" and not there and _REPOSITORY.fullmatch(argument):
        path = False
    return f"{name}:PATH" if colon and path else source


def public_backbone(source: str) -> str:
    """The same of a backbone: `NAME:ARCH@PATH`, `NAME:PATH` or `NAME:PATH+remote-code` for local
    weights; a repository of the Hub stays."""
    name, colon, argument = source.partition(":")
    if not colon:
        return source
    place, plus, remote = argument.partition("+remote-code")
    if place.startswith("local-dir:"):
        return f"{name}:local-dir:PATH"
    model, at, _ = place.partition("@")
    rooted = place.startswith(("/", "\\", "~", ".")) or model[1:2] == ":"
    if rooted or (place and Path(place).exists()):
        return f"{name}:PATH{plus}{remote}"
    public: str = scrub(f"{name}:{model}@PATH" if at else source)
    return public


def needs_weights(public: str) -> bool:
    """Whether what `public_backbone` gave lacks where the weights are."""
    return re.search(rf"[:@]PATH(?:\+|$)|{PATH}", public) is not None


def public_record(record: Record) -> Record:
    """The record as it may leave: no paths, no names of files, of an error only its type and the
    plugin. The key and everything that the numbers rest on stay."""
    value = record.to_dict()
    made = value["provenance"]
    further = made.get("backbones")
    for part in (
        *(made.get(name) for name in ("method", "backbone", "dataset")),
        *(further if isinstance(further, list) else ()),
    ):
        if isinstance(part, dict):
            part.pop("file", None)
    for name in ("hparams", "recipe", "provenance", "notes", "data"):
        if name == "data":
            value[name].pop("notes", None)  # they may name files, images and patients
            value[name]["caption"] = scrub(value[name]["caption"])
        else:
            value[name] = scrub(value[name])
    if value["error"] is not None:
        kept = {k: value["error"].get(k) for k in ("type", "plugin")}
        value["error"] = {**kept, "message": LEFT_OUT}
    return Record.of(value)


class Pseudonyms:
    """Names that tell nothing, the same for the same image as long as the salt is.

    HMAC-SHA256 of the dataset's fingerprint and the id under the salt, cut to 64 bits: without the
    salt nobody can try ids until one fits.
    """

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    @classmethod
    def of_folder(cls, folder: Path) -> Pseudonyms:
        """With the folder's own salt, which is drawn at the first export and stays in the folder:
        exports of one folder agree with each other. Raises OSError, UsageError."""
        path = folder / SALT_FILE
        try:
            found = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            try:
                salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
            except ValueError:
                salt = b""
            if len(salt) < 16:
                raise UsageError(
                    f"{path} is not a salt file; move it away to create a new one"
                ) from None
            return cls(salt)
        salt = secrets.token_bytes(32)
        with os.fdopen(found, "w", encoding="ascii") as file:
            file.write(salt.hex() + "\n")
        return cls(salt)

    def of(self, kind: str, fingerprint: str, name: str) -> str:
        """The pseudonym of an image's or group's name in a dataset."""
        text = "\x1f".join((kind, fingerprint, name)).encode("utf-8", "surrogatepass")
        return kind[0] + "-" + hmac.new(self._salt, text, hashlib.sha256).hexdigest()[:16]

    def many(self, kind: str, fingerprint: str, names: Sequence[str]) -> list[str]:
        """`of` each."""
        return [self.of(kind, fingerprint, name) for name in names]

    def predictions(self, record: Record, predictions: Predictions) -> Predictions:
        """The same predictions under pseudonyms."""
        of = record.data.fingerprint
        groups = predictions.groups
        return Predictions(
            self.many("image", of, predictions.ids),
            None if groups is None else self.many("group", of, groups),
            predictions.labels,
            predictions.scores,
        )


def withheld(record: Record, shareable: Collection[str]) -> bool:
    """Whether the learned parameters beside the record leave by `--patient-data` alone.

    shareable: names of datasets whose images may be shared. Their features may be, too, where all
    that the cell was trained and tested on is of them.
    """
    stem, _ = split_part(record.cell.dataset)
    return holds_patient_data(record) and not set(stem.split(ARROW)) <= set(shareable)


def holds_patient_data(record: Record) -> bool:
    """Whether the learned parameters beside the record may hold single images' features.

    That is so where a tensor has as many rows as there were images to learn from, to validate on
    or to test (Tip-Adapter's keys), and at one shot, where a class's mean is one image. Learned
    context vectors, as many as the hyperparameter `n_ctx` says, are no rows of images.
    """
    parameters = record.provenance.get("parameters")
    if not isinstance(parameters, dict):
        return False
    d, n = record.data, record.metrics.get("n")
    sizes = {size for size in (d.n_support, d.n_val, n) if size}
    tensors = parameters.get("tensors")
    shapes = [[*sizes]]
    if isinstance(tensors, dict):
        shapes = [_without_context(name, shape, record) for name, shape in tensors.items()]
    return record.cell.shots == 1 or any(set(shape) & sizes for shape in shapes if shape)


def _without_context(name: str, shape: Sequence[int], record: Record) -> list[int]:
    """A tensor's sizes but for the number of its context vectors."""
    left, count = list(shape), record.hparams.get("n_ctx")
    if "context" in name and count in left[:-1]:
        left.remove(count)
    return left
