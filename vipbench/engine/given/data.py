"""Data given from Python: the table, with its card, that a suite names.

Images that are files stay where they are; the card names the folder that they are below. Images in
memory are written as PNG files beside the table.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.errors import UsageError, unknown
from vipbench.files import differs
from vipbench.images import FROM_DICOM, ImageError, dicom_value, digest_image
from vipbench.results.store.lock import take_lock
from vipbench.results.store.store import LOCK
from vipbench.runspec import values as words
from vipbench.runspec.yaml import dump_yaml

# What a card may say beside the parameters of `data`.
CARD_KEYS = ("modality", "licence", "citation", "caption", "sharing", "bits", "window", "group")
COLUMNS = ("path", "label", "split", "fold", "group", "sha256")
KINDS = (
    "a list of (path, label[, split[, group]]), a pandas DataFrame, a torchvision ImageFolder, a "
    "Hugging Face Dataset, a vipbench Dataset, or a mapping from split to one of these"
)
RATIOS = (6.0, 1.0, 3.0)
SEED = 1
_MARK = "# Written by vipbench from data given in Python.\n"
_NAME = re.compile(r"[^\W_](?:[\w .+-]*[\w+-])?")
# What PNG keeps as it is.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Data for `vipbench.run(datasets={NAME: ...})` with what a card says of them; see `data`.

    given: the data. images: the folder that relative paths start at. columns: what a frame calls a
    table's columns. card: the other keys of its card.
    """

    given: Any
    images: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        keys = ", ".join(self.card)
        return f"<vipbench data: {type(self.given).__name__}{f' with {keys}' if keys else ''}>"


def data(
    given: Any,
    *,
    images: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    class_names: Mapping[Any, str] | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    symptoms: str | os.PathLike[str] | Mapping[str, Sequence[str]] | None = None,
    **card: Any,
) -> Data:
    """Data with what a card says of them, for `vipbench.run(datasets={NAME: ...})`.

    given: a list of `(path, label[, split[, group]])`, a pandas DataFrame with the columns of a
        table (path, label[, split or fold][, group][, sha256]), a torchvision `ImageFolder`, a
        Hugging Face `Dataset` or `DatasetDict`, a vipbench `Dataset`, or a mapping from split to
        one of these. In the place of a path may stand a PIL image or an array (H,W) or (H,W,3),
        which is written as a PNG file. Without splits, 60/10/30 % are drawn, in whole groups, with
        seed 1.
    images: the folder where relative paths start, by default the working directory; with it, images
        outside of it are refused.
    columns: what the frame calls a table's columns, `{"label": "finding", "group": "patient"}`.
    class_names: label -> name shown, or names in the order of integer labels.
    templates: prompt templates holding one `{}`. symptoms: a symptom file, or class -> texts.
    card: further keys of a card: licence, citation, caption, sharing, modality, bits, window, group
        (`dicom:PatientID`).

    Raises UsageError for another key.
    """
    for key in card:
        if key not in CARD_KEYS:
            known = ("images", "columns", "class_names", "templates", "symptoms", *CARD_KEYS)
            raise unknown("argument of data", key, known)
    for column in columns or ():
        if column not in COLUMNS:
            raise unknown("key of columns", str(column), COLUMNS)
    if isinstance(given, Data):
        raise UsageError("data() was given its own result; pass the data themselves")
    texts = {"class_names": class_names, "templates": templates, "symptoms": symptoms}
    card = {key: value for key, value in (texts | card).items() if value is not None}
    folder = None if images is None else Path(images).expanduser()
    if folder is not None and not folder.is_dir():
        raise UsageError(f"images: '{folder}' is not a folder; expected the folder of the images")
    return Data(given, folder, dict(columns or {}), card)


@dataclass
class _Table:
    """columns: what the columns are called. rows: cells of each; `image` is the place of the image,
    a path or an image in memory. class_names: the classes that the data name, in order. card: what
    the data say themselves."""

    columns: list[str]
    rows: list[list[Any]]
    image: int = 0
    class_names: Sequence[str] = ()
    card: dict[str, Any] = field(default_factory=dict)

    def place(self, column: str) -> int | None:
        """Where a column is; names are compared as people read them."""
        plain = [" ".join(name.split()).casefold() for name in self.columns]
        wanted = " ".join(column.split()).casefold()
        return plain.index(wanted) if wanted in plain else None


def write_data(name: Any, given: Any, out: Path) -> str:
    """Write `OUT/data/NAME.csv` with its card, and images in memory below `OUT/data/NAME`; returns
    the dataset as a suite names it. Files that are there with the same content stay untouched.

    Raises UsageError for data that make no table, StoreError, OSError.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"datasets: {words.show(name)} is not a valid name; expected letters, digits, blanks, "
            "'.', '-' and '_', as in a file's name"
        )
    of = given if isinstance(given, Data) else Data(given)
    folder = out.absolute() / "data"
    try:
        table = _table_of(of.given, of.columns)
        if not table.rows:
            raise UsageError("there are no images")
        written, root, shown = _images(name, table, of, folder)
        card = _card(name, table, of, written, folder)
        if root is not None:
            card["images"] = str(root)
        if all(table.place(of.columns.get(column, column)) is None for column in ("split", "fold")):
            drawn = _draw(table, of.columns, shown, card.get("group", ""))
            card["caption"] = f"{card.get('caption', '')} {drawn}".strip()
    except (UsageError, ImageError) as error:
        raise UsageError(f"datasets: '{name}': {error}") from None
    written[folder / f"{name}.csv"] = _csv(table)
    written[folder / f"{name}.yaml"] = (_MARK + dump_yaml(card)).encode()
    _save(name, written, folder)
    return f"csv:{folder / f'{name}.csv'}"


def _table_of(given: Any, columns: Mapping[str, str]) -> _Table:
    """The table of data of any kind. Raises UsageError."""
    if _is(given, "pandas", "DataFrame"):
        return _of_frame(given, columns)
    if _is(given, "torchvision", "DatasetFolder"):
        names = [str(name) for name in given.classes]
        rows = [[path, names[label]] for path, label in given.samples]
        return _Table(["path", "label"], rows, class_names=names)
    if _is(given, "datasets", "Dataset"):
        return _of_hugging_face(given, columns)
    if _is(given, "vipbench", "Dataset"):
        return _of_dataset(given)
    if isinstance(given, Mapping):
        return _of_splits(given, columns)
    if isinstance(given, list | tuple):
        return _of_list(given)
    raise UsageError(f"{_kind(given)} cannot be read as data; expected {KINDS}")


def _is(value: Any, package: str, name: str) -> bool:
    """Whether the value is of a class of a package that need not be installed."""
    return any(
        cls.__name__ == name and cls.__module__.partition(".")[0] == package
        for cls in type(value).__mro__
    )


def _kind(value: Any) -> str:
    cls = type(value)
    name = (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )
    return f"{words.show(value)} of type {name}"


def _of_list(given: Sequence[Any]) -> _Table:
    expected = "expected (path, label[, split[, group]])"
    rows = []
    for number, row in enumerate(given):
        if not isinstance(row, list | tuple) or not 2 <= len(row) <= 4:
            raise UsageError(f"entry {number} is {words.show(row)}; {expected}")
        rows.append([*row, *[None] * (4 - len(row))])
    used = [i for i in range(4) if i < 2 or any(row[i] is not None for row in rows)]
    columns = ("path", "label", "split", "group")
    return _Table([columns[i] for i in used], [[row[i] for i in used] for row in rows])


def _of_frame(given: Any, columns: Mapping[str, str]) -> _Table:
    table = _Table([str(name) for name in given.columns], [])
    for column in ("path", "label", *columns):
        wanted = columns.get(column, column)
        if table.place(wanted) is None:
            raise UsageError(
                f"the data frame has no column '{wanted}' for the {column}; its columns are "
                f"{', '.join(map(repr, table.columns)) or 'none'}; expected path, label[, split or "
                "fold][, group]. Where a column has another name: vipbench.data(frame, "
                f"columns={{'{column}': NAME}})"
            )
    table.rows = [list(row) for row in given.itertuples(index=False, name=None)]
    table.image = table.place(columns.get("path", "path")) or 0
    return table


def _of_hugging_face(given: Any, columns: Mapping[str, str]) -> _Table:
    found: dict[str, str] = {}
    for column, kind in (("path", "Image"), ("label", "ClassLabel")):
        fitting = [k for k, feature in given.features.items() if type(feature).__name__ == kind]
        named = columns.get(column)
        if named is not None and named not in given.features:
            raise unknown("column of the dataset", named, given.features)
        if named is None and len(fitting) != 1:
            raise UsageError(
                f"the dataset has {len(fitting)} columns of the kind {kind} for the {column}; its "
                f"columns are {', '.join(map(repr, given.features))}. Name it: vipbench.data("
                f"dataset, columns={{'{column}': NAME}})"
            )
        found[column] = named or fitting[0]
    for column in ("group", "split", "fold"):
        if (named := columns.get(column)) is not None:
            if named not in given.features:
                raise unknown("column of the dataset", named, given.features)
            found[column] = named
    label = given.features[found["label"]]
    names = [str(name) for name in getattr(label, "names", None) or ()]
    rows: list[list[Any]] = []
    for example in given.select_columns(list(found.values())):
        row = [example[named] for named in found.values()]
        if names and isinstance(row[1], int):
            if not 0 <= row[1] < len(names):
                raise UsageError(f"image {len(rows)} has the label {row[1]}, which names no class")
            row[1] = names[row[1]]
        rows.append(row)
    return _Table([columns.get(column, column) for column in found], rows, class_names=names)


def _of_dataset(given: Any) -> _Table:
    splits = given.load(None)
    names = tuple(given.class_names)
    rows = [
        [
            image,
            names[int(split.labels[i])],
            part,
            None if split.groups is None else split.groups[i],
        ]
        for part, split in splits.items()
        for i, image in enumerate(split.images)
    ]
    columns = ["path", "label", "split", "group"]
    if all(row[3] is None for row in rows):
        columns, rows = columns[:3], [row[:3] for row in rows]
    card: dict[str, Any] = {"templates": list(given.templates)}
    for key in ("licence", "citation", "caption", "sharing"):
        if value := getattr(given, key):
            card[key] = value
    if given.symptoms is not None:
        card["symptoms"] = {name: list(texts) for name, texts in given.symptoms.items()}
    if given.pixels is not None:
        card["window"] = [given.pixels.low, given.pixels.high]
    return _Table(columns, rows, class_names=names, card=card)


def _of_splits(given: Mapping[Any, Any], columns: Mapping[str, str]) -> _Table:
    """A mapping from split to data of the same columns."""
    tables = {str(split): _table_of(part, columns) for split, part in given.items()}
    if not tables:
        raise UsageError(f"the mapping is empty; expected {KINDS}")
    first = next(iter(tables.values()))
    for split, table in tables.items():
        if table.columns != first.columns or table.image != first.image:
            raise UsageError(
                f"the split '{split}' has the columns {', '.join(table.columns)}, and the first "
                f"has {', '.join(first.columns)}; expected the same"
            )
        if table.class_names != first.class_names:
            raise UsageError(
                f"the split '{split}' has the classes {', '.join(table.class_names)}, and the "
                f"first has {', '.join(first.class_names)}; expected the same"
            )
    named = columns.get("split", "split")
    if first.place(named) is not None:
        raise UsageError(f"the data of each split already have a column '{named}'; remove it")
    rows = [[*row, split] for split, table in tables.items() for row in table.rows]
    return _Table([*first.columns, named], rows, first.image, first.class_names, first.card)


def _images(
    name: str, table: _Table, of: Data, folder: Path
) -> tuple[dict[Path, bytes], Path | None, list[Any]]:
    """The files to write for images in memory, the folder that the others are below, and the images
    to open. Puts the paths into the table."""
    written: dict[Path, bytes] = {}
    shown: list[Any] = []
    files_of: dict[int, Path] = {}
    for number, row in enumerate(table.rows):
        image = _unpacked(row[table.image])
        if isinstance(image, str | os.PathLike):
            path = Path(image).expanduser()
            start = Path.cwd() if of.images is None else of.images.absolute()
            files_of[number] = Path(os.path.normpath(start / path))
            shown.append(files_of[number])
        elif image is None or isinstance(image, int | float):
            raise UsageError(f"row {number} has no image: {words.show(row[table.image])}")
        else:
            file = folder / name / f"{number:06d}.png"
            made = _image(image, number)
            written[file] = _png(made)
            row[table.image] = file.relative_to(folder).as_posix()
            shown.append(made)
    root = None if of.images is None else of.images.absolute()
    if root is None and files_of:
        root = _common(files_of.values())
        if not all(file.resolve().is_relative_to(root.resolve()) for file in files_of.values()):
            # Links that lead elsewhere: the user named the images behind them.
            files_of = {number: file.resolve() for number, file in files_of.items()}
            root = _common(files_of.values())
    for number, file in files_of.items():
        below = root is not None and file.is_relative_to(root)
        table.rows[number][table.image] = str(file.relative_to(root) if below and root else file)
    return written, root, shown


def _common(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _unpacked(image: Any) -> Any:
    """What a Hugging Face image that was not decoded holds."""
    if isinstance(image, Mapping) and {"bytes", "path"} >= image.keys():
        return image.get("bytes") or image.get("path")
    return image


def _image(image: Any, number: int) -> Any:
    from PIL import Image, ImageOps

    if isinstance(image, bytes):
        try:
            image = Image.open(io.BytesIO(image))
            image.load()
        except (OSError, ValueError) as error:
            raise UsageError(f"row {number}: its bytes are not an image: {error}") from None
    elif hasattr(image, "__array_interface__") and not isinstance(image, Image.Image):
        try:
            image = Image.fromarray(image)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"row {number}: an array of shape {image.shape} and type {image.dtype} is not an "
                f"image ({error}); expected (H,W) or (H,W,3), uint8"
            ) from None
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"row {number}: {_kind(image)} is not an image; expected a path or an image"
        )
    return ImageOps.exif_transpose(image)


def _png(image: Any) -> bytes:
    kept = image if image.mode in _PNG_MODES else image.convert("RGB")
    out = io.BytesIO()
    kept.save(out, "PNG")
    return out.getvalue()


def _card(
    name: str, table: _Table, of: Data, written: dict[Path, bytes], folder: Path
) -> dict[str, Any]:
    """What the card says but for the images; a symptom file is copied beside it."""
    card = {**table.card, **of.card}
    if "modality" in of.card and "templates" not in of.card:
        card.pop("templates", None)
    given, found = card.pop("class_names", {}), list(table.class_names)
    if not isinstance(given, Mapping):
        labels = found or [str(i) for i in range(len(given))]
        if len(given) != len(labels):
            raise UsageError(f"class_names has {len(given)} names for {len(labels)} classes")
        there = set(_labels(table, of.columns))
        given = {label: text for label, text in zip(labels, given, strict=True) if label in there}
    shown = {_cell(label): str(text) for label, text in given.items()}
    if found:
        there = set(_labels(table, of.columns))
        own = {label: label.replace("_", " ").strip() for label in found if label in there}
        shown = own | shown
    if shown:
        card["class_names"] = shown
    if "templates" in card:
        card["templates"] = (
            [card["templates"]] if isinstance(card["templates"], str) else list(card["templates"])
        )
    symptoms = card.get("symptoms")
    if isinstance(symptoms, str | os.PathLike):
        source = Path(symptoms).expanduser()
        try:
            copied = source.read_bytes()
        except OSError as error:
            raise UsageError(f"symptoms: '{source}' cannot be read: {error.strerror}") from None
        card["symptoms"] = f"{name}-symptoms.json"
        written[folder / card["symptoms"]] = copied
    elif isinstance(symptoms, Mapping):
        card["symptoms"] = {
            str(label): [texts] if isinstance(texts, str) else list(texts)
            for label, texts in symptoms.items()
        }
    if columns := {k: v for k, v in of.columns.items() if table.place(v) is not None}:
        card["columns"] = columns
    return card


def _draw(
    table: _Table, columns: Mapping[str, str], images: Sequence[Any], of_file: str = ""
) -> str:
    """Add a column with a drawn split; returns the sentence that says so. of_file: the card's
    `group`."""
    # Not before they are needed: they import torch.
    from vipbench.api.dataset import DataError
    from vipbench.api.draw_split import draw_split, groups_by_content

    group = table.place(columns.get("group", "group"))
    labels = _labels(table, columns)
    names = sorted(set(labels))
    digests = [digest_image(image) for image in images]
    groups = None
    if of_file:
        if not all(isinstance(image, Path) for image in images):
            raise UsageError(f"group is '{of_file}', but some images are not files")
        keyword = of_file.removeprefix(FROM_DICOM)
        ids = [dicom_value(image, keyword) or f"image {i}" for i, image in enumerate(images)]
        groups = groups_by_content(ids, digests)
    elif group is not None:
        ids = [_cell(row[group]) or f"image {i}" for i, row in enumerate(table.rows)]
        groups = groups_by_content(ids, digests)
    places = [names.index(one) for one in labels]
    try:
        drawn = draw_split(places, digests, names, RATIOS, SEED, groups)
    except DataError as error:
        raise UsageError(f"no split can be drawn: {error}") from None
    split_of = {int(i): split for split, rows in drawn.items() for i in rows}
    for i, row in enumerate(table.rows):
        row.append(split_of[i])
    table.columns.append(columns.get("split", "split"))
    how = "stratified" if groups is None else "in whole groups"
    return f"Split 60/10/30 drawn by vipbench, {how}, seed {SEED}."


def _labels(table: _Table, columns: Mapping[str, str]) -> list[str]:
    place = table.place(columns.get("label", "label"))
    assert place is not None  # every kind of data has labels
    return [_cell(row[place]) for row in table.rows]


def _cell(value: Any) -> str:
    """A cell as text; nothing for a missing value."""
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    # Whole numbers become floats where others are missing.
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()


def _csv(table: _Table) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_cell(value) for value in row] for row in table.rows)
    return out.getvalue().encode()


def _save(name: str, written: Mapping[Path, bytes], folder: Path) -> None:
    """Write what is not there yet, while no other process writes into the results folder."""
    card = folder / f"{name}.yaml"
    for file in (card, folder / f"{name}.csv"):
        ours = card.is_file() and card.read_bytes().startswith(_MARK.encode())
        if file.exists() and not ours:
            raise UsageError(
                f"datasets: '{name}' would overwrite {file}, which vipbench did not write; "
                "move it away, or give the data another name"
            )
    new = {file: content for file, content in written.items() if differs(file, content)}
    if not new:
        return
    lock = take_lock(folder.parent, LOCK)
    try:
        for file, content in new.items():
            files.make_folder(file.parent, folder.parent)
            files.write(file, content)
    finally:
        lock.release()
