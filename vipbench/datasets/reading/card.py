"""The card beside a user's data: a YAML file that says what the files cannot say.

name: chest                           # in tables, instead of the file's or folder's
class_names: [normal, pneumonia]      # npz: in the order of the labels
class_names: {NORMAL: normal lung}    # folder, csv: what the class is called -> display name
columns: {path: file, label: finding, group: patient}   # csv only
templates: ["a chest X-ray of {}."]
modality: chest X-ray                 # instead of templates
images: ../share/images               # where the images are, if not beside this file
group: dicom:PatientID                # the patient of each image, from its DICOM file
symptoms: symptoms.json               # beside the card; or written here, class -> list
licence: CC BY 4.0
citation: ...
caption: ...
sharing: local                        # or: allowed
bits: 12                              # of images that keep fewer than 16 bits in 16
window: [-200, 300]                   # or: the stored values that become black and white
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vipbench.api.dataset import DataError, Dataset
from vipbench.datasets.reading.paths import inside, listed
from vipbench.datasets.reading.spelling import alike, clean, skeleton
from vipbench.errors import UsageError, unknown
from vipbench.images import FROM_DICOM, ImageError, dicom_value
from vipbench.images.depth import CARD_BITS, CARD_WINDOW, PixelRange
from vipbench.runspec.yaml import read_yaml
from vipbench.symptoms import is_template, load_symptoms, parse_symptoms

COLUMNS = ("path", "label", "split", "fold", "group", "sha256")
_TEXTS = ("modality", "licence", "citation", "caption", "images", "group")
_KEYS = (
    "name",
    "class_names",
    "columns",
    "templates",
    "symptoms",
    "sharing",
    "bits",
    "window",
    *_TEXTS,
)
# A dataset's name has nothing that names of folds, parts and targets, or lists, are made of.
_NAME = re.compile(r"(?!.*->)[\w.+-](?:[\w.+ -]{0,58}[\w.+-])?")


@dataclass(frozen=True)
class Card:
    """What a card says; everything is optional.

    class_names: names by label, or a mapping from what the data call a class to its display
        name. columns: what a CSV's columns are called. symptoms: a path, or class -> texts.
        pixels: what `bits` or `window` says. group: `dicom:` and the keyword of the element of the
        images' files that names the group.
    """

    path: Path
    name: str = ""
    class_names: tuple[str, ...] | dict[str, str] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] | None = None
    symptoms: Path | dict[str, Any] | None = None
    modality: str = ""
    licence: str = ""
    citation: str = ""
    caption: str = ""
    images: str = ""
    group: str = ""
    sharing: Literal["local", "allowed"] | None = None
    pixels: PixelRange | None = None

    def display_names(self, found: Sequence[str]) -> tuple[str, ...]:
        """Display names of the classes that the data call `found`; they must differ."""
        given = {} if self.class_names is None else self.class_names
        if not isinstance(given, dict):
            raise DataError(
                f"card '{self.path}': class_names is a list; expected a mapping from the names in "
                f"the data to display names, {{{found[0]}: ...}}"
            )
        given = {clean(name): text for name, text in given.items()}
        strange = [name for name in given if name not in found]
        if strange:
            raise DataError(
                f"card '{self.path}': class_names names {listed(strange)}, which the data do not "
                f"have; they have {listed(found, 20)}"
            )
        shown: dict[str, str] = {}
        for name in found:
            text = given.get(name, name.replace("_", " ").strip())
            other = next((n for n, t in shown.items() if skeleton(t) == skeleton(text)), None)
            if other is not None:
                raise DataError(
                    f"the classes '{other}' and '{name}' would both be shown as '{text}', or look "
                    f"alike{alike(other, name)}; rename one, or give display names in a card"
                )
            shown[name] = text
        return tuple(shown.values())

    def named(self) -> set[str]:
        """What the data call the classes to which the card gives names."""
        return set(map(clean, self.class_names)) if isinstance(self.class_names, dict) else set()

    def image_folders(self, given: Path | None) -> list[Path]:
        """The folders that a user named for the images: `given` on the command line, and `images`
        of the card (absolute, below the home folder `~`, or as seen from the card). Raises
        DataError where one is none."""
        named = [] if given is None else [(given, "--images")]
        if self.images:
            folder = self.path.parent / Path(self.images).expanduser()
            named.append((folder, f"card '{self.path}': images"))
        for folder, who in named:
            if not folder.is_dir():
                raise DataError(f"{who} names '{folder}', which is not a folder")
        return [folder for folder, _ in named]

    def file_groups(self, files: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
        """The group of each image by its DICOM file, as `group` says, and sentences on images that
        name none: each is a group of its own. files: name -> file. Raises DataError."""
        keyword = self.group.removeprefix(FROM_DICOM)
        try:
            groups = {name: dicom_value(file, keyword) for name, file in files.items()}
        except ImageError as error:
            raise DataError(f"group '{self.group}': {error}") from error
        lacking = [name for name, group in groups.items() if not group]
        groups.update((name, name) for name in lacking)
        return groups, [
            f"{len(lacking)} of {len(files)} images have no {keyword} ('{lacking[0]}', ...); each "
            "forms a group of its own"
        ] if lacking else []

    def apply(self, dataset: Dataset) -> None:
        """Set the attributes of `dataset`, whose class names are known by now. Raises DataError."""
        if self.group and not dataset.takes_images:
            raise DataError(
                f"card '{self.path}': group is only for datasets of image files, which "
                f"'{dataset.name}' is not; remove the line"
            )
        dataset.name = self.name or dataset.name
        if self.templates is not None:
            dataset.templates = self.templates
        elif self.modality:
            article = "an" if self.modality[0].lower() in "aeiou" else "a"
            dataset.templates = (f"{article} {self.modality} of {{}}.",)
        for key in ("licence", "citation"):
            if getattr(self, key):
                setattr(dataset, key, getattr(self, key))
        if self.caption:
            dataset.caption = f"{self.caption} {dataset.caption}".strip()
        if self.sharing is not None:
            dataset.sharing = self.sharing
        if self.pixels is not None:
            dataset.pixels = self.pixels
        if isinstance(self.symptoms, Path):
            dataset.symptoms = load_symptoms(self.symptoms, dataset.class_names).symptoms
        elif self.symptoms is not None:
            text = json.dumps(self.symptoms)
            where = f"card '{self.path}', symptoms"
            dataset.symptoms = parse_symptoms(text, dataset.class_names, where).symptoms


def find_card(*candidates: Path) -> Card | None:
    """The card among `candidates`; raises DataError where there are two, or it is wrong."""
    there = [path for path in candidates if path.exists()]
    if len(there) > 1:
        raise DataError(f"found two cards, {listed(map(str, there))}; keep one")
    return read_card(there[0]) if there else None


def read_card(path: Path) -> Card:
    """Read and check a card. Raises DataError naming key and line."""
    try:
        document = read_yaml(path, "card")
        if not isinstance(document.value, dict):
            raise UsageError(
                f"card '{path}' is not a mapping; expected `class_names: ...` and so on"
            )
        for key in document.value:
            if key not in _KEYS:
                raise unknown(f"key in line {document.line((key,))} of card '{path}',", key, _KEYS)
        return _make(path, document.value)
    except UsageError as error:
        raise DataError(str(error)) from error


def _make(path: Path, given: Mapping[str, Any]) -> Card:
    def wrong(key: str, expected: str) -> UsageError:
        return UsageError(f"card '{path}': {key} is {given[key]!r}; expected {expected}")

    parts: dict[str, Any] = {}
    for key in _TEXTS:
        if key in given:
            if not isinstance(given[key], str) or not given[key].strip():
                raise wrong(key, "a text (in quotes, if it looks like something else)")
            parts[key] = given[key].strip()
    if "group" in parts:
        check_file_group(parts["group"], f"card '{path}': group")
        if "group" in (given.get("columns") or ()):
            raise UsageError(f"card '{path}': give either group or columns.group, not both")
    if "name" in given:
        if not _is_text(given["name"]) or not _NAME.fullmatch(given["name"]):
            raise wrong(
                "name",
                "up to 60 letters, digits, spaces and . _ + -, without a leading or trailing space",
            )
        parts["name"] = given["name"]
    if "class_names" in given:
        parts["class_names"] = _class_names(given["class_names"], wrong)
    if "columns" in given:
        columns = given["columns"]
        if not isinstance(columns, dict) or not all(map(_is_text, columns.values())):
            raise wrong("columns", f"a mapping of {', '.join(COLUMNS)} to column names")
        for key in columns:
            if key not in COLUMNS:
                raise unknown(f"column in card '{path}',", str(key), COLUMNS)
        parts["columns"] = dict(columns)
    if "templates" in given:
        templates = given["templates"]
        if not isinstance(templates, list) or not templates or not all(map(is_template, templates)):
            raise wrong("templates", "a list of texts that hold {} once")
        if "modality" in given:
            raise UsageError(f"card '{path}': give templates or modality, not both")
        parts["templates"] = tuple(templates)
    if "symptoms" in given:
        symptoms = given["symptoms"]
        if isinstance(symptoms, str):
            symptoms = inside(path.parent, symptoms, f"card '{path}', symptoms")
        elif not isinstance(symptoms, dict):
            raise wrong("symptoms", "a file beside the card, or a mapping of class to texts")
        parts["symptoms"] = symptoms
    if "sharing" in given:
        if given["sharing"] not in ("local", "allowed"):
            raise wrong("sharing", "'local' or 'allowed'")
        parts["sharing"] = given["sharing"]
    if "bits" in given and "window" in given:
        raise UsageError(f"card '{path}': give bits or window, not both")
    if "bits" in given:
        bits = given["bits"]
        if type(bits) is not int or not 9 <= bits <= 16:
            raise wrong("bits", "a whole number from 9 to 16: the bits that are used of 16")
        parts["pixels"] = PixelRange(0, (1 << bits) - 1, CARD_BITS)
    if "window" in given:
        window = given["window"]
        if not isinstance(window, list) or len(window) != 2 or not all(map(_is_number, window)):
            raise wrong("window", "[LOW, HIGH], the stored values that become black and white")
        if not window[0] < window[1]:
            raise wrong("window", "[LOW, HIGH] with LOW below HIGH")
        parts["pixels"] = PixelRange(window[0], window[1], CARD_WINDOW)
    return Card(path, **parts)


def check_file_group(text: str, what: str) -> None:
    """Raises UsageError for a `group` that names no element of DICOM files."""
    if not re.fullmatch(rf"{FROM_DICOM}[A-Za-z]\w*", text):
        raise UsageError(
            f"{what} is '{text}'; expected {FROM_DICOM}PatientID, or another element of the "
            "images' DICOM files (a table's column is named by `columns: {group: NAME}`)"
        )


def _class_names(given: Any, wrong: Any) -> tuple[str, ...] | dict[str, str]:
    values = list(given.values()) if isinstance(given, dict) else given
    if not isinstance(values, list) or not values or not all(map(_is_text, values)):
        raise wrong("class_names", "a list of texts, or a mapping of texts to texts")
    if len(set(map(skeleton, values))) < len(values):
        raise wrong("class_names", "names that differ")
    if isinstance(given, dict):
        if not all(map(_is_text, given)):
            raise wrong("class_names", "texts as keys, too (put numbers in quotes)")
        return dict(given)
    return tuple(values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
