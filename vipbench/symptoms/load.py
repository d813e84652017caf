"""Reading symptom sets and descriptions, `{"class name": ["text", …], …}`, and checking them.

Classes are bound by name, never by order. The class name must not be in its own symptoms: the
method would then read the very word that symptoms are to replace.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from vipbench.errors import UsageError
from vipbench.symptoms.names import holds_name, normal

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


MAX_BYTES = 1024 * 1024
MAX_SYMPTOMS = 500  # of a class
MAX_CHARACTERS = 500  # of a symptom

# Words of a class name that say nothing about the class.
_SMALL_WORDS = frozenset({"and", "for", "from", "like", "not", "other", "the", "with"})


@dataclass(frozen=True)
class SymptomSet:
    """Symptoms bound to the classes of a dataset.

    symptoms: class name -> its symptoms, in the order of the dataset's classes; white space
        within a symptom is collapsed. sha256: digest of that content, whatever the file looks
        like. warnings: what a careful reader would ask about. kind: "symptoms" or "descriptions"
        (which hold the class name). source: who wrote them, with which prompts and images.
    """

    symptoms: dict[str, tuple[str, ...]]
    sha256: str
    warnings: list[str]
    kind: str = "symptoms"
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images_seen(self) -> int:
        """The most labelled training images of one class that the texts were written from."""
        seen = self.source.get("images_seen", {})
        counts = seen.values() if isinstance(seen, Mapping) else ()
        return max((n for n in counts if type(n) is int), default=0)


def load_symptoms(
    path: str | PathLike[str],
    class_names: Sequence[str],
    plain: str = "symptoms",
    strict: bool = True,
) -> SymptomSet:
    """Read the JSON file `path` for a dataset with these classes.

    plain: of which kind a file in the plain form is, "symptoms" or "descriptions". strict: whether
    class names in their own symptoms and classes without any are errors; else they are warnings.
    Class names are compared without regard to case, underscores and white space. Raises
    SymptomError.
    """
    what = f"{'symptom' if plain == 'symptoms' else 'description'} file '{path}'"
    return parse_symptoms(file_text(Path(path), what), class_names, what, plain, strict)


def file_text(path: Path, what: str) -> str:
    """The text of a file in UTF-8. Raises SymptomError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SymptomError(f"{what} does not exist") from None
    except OSError as error:
        raise SymptomError(f"{what} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SymptomError(f"{what} is larger than {MAX_BYTES // 1024} KiB, the limit")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SymptomError(
            f"{what} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def parse_symptoms(
    text: str,
    class_names: Sequence[str],
    what: str = "symptoms",
    plain: str = "symptoms",
    strict: bool = True,
) -> SymptomSet:
    """Read the JSON document `text`; `what` names it in messages. plain, strict: see load_symptoms.
    Raises SymptomError."""
    document, kind, source, stated = opened(_parse(text, what), what, plain)
    if plain == "descriptions" and kind != plain:
        raise SymptomError(f"{what} says that it holds {kind}; give it by --symptoms")
    bound = _bind(document, class_names, what)
    symptoms = {
        name: _check_class(name, bound[name], what) if strict or bound[name] != [] else ()
        for name in class_names
    }
    warnings = []
    if kind == "symptoms":
        for name in class_names:
            warnings += _leaks(name, symptoms[name], class_names, what, strict)
    warnings += _repeats(symptoms)
    digest = digest_of(symptoms)
    if stated is not None and stated != digest:
        warnings.append("the file was edited since it was made: its 'sha256' is of other texts")
    return SymptomSet(symptoms, digest, warnings, kind, source)


def digest_of(symptoms: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of classes and texts, whatever the file looks like."""
    canonical = json.dumps({k: list(v) for k, v in symptoms.items()}, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def shipped_symptoms(dataset: str, class_names: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """The set that vipbench ships for `dataset`, or None where it ships none."""
    text = _shipped(f"{dataset}.json", "data")
    if text is None:
        return None
    return parse_symptoms(text, class_names, f"shipped symptoms '{dataset}'").symptoms


def shipped_descriptions(
    dataset: str, class_names: Sequence[str]
) -> dict[str, tuple[str, ...]] | None:
    """The descriptions (texts about a class that hold its name) that vipbench ships for
    `dataset`, or None where it ships none."""
    text = _shipped(f"{dataset}.json", "data", "descriptions")
    if text is None:
        return None
    what = f"shipped descriptions '{dataset}'"
    bound = _bind(_parse(text, what), class_names, what)
    return {name: _check_class(name, bound[name], what) for name in class_names}


def _shipped(file_name: str, *folder: str) -> str | None:
    for file in resources.files("vipbench.symptoms").joinpath(*folder).iterdir():
        if file.name == file_name:
            return file.read_text(encoding="utf-8")
    return None


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, what))
    except json.JSONDecodeError as error:
        raise SymptomError(
            f"{what} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}; "
            'expected {"class name": ["symptom", ...], ...}'
        ) from None
    except RecursionError:
        raise SymptomError(f"{what} is nested too deeply") from None
    except SymptomError:
        raise
    except ValueError:  # Python's limit on the digits of an integer
        raise SymptomError(f"{what} contains a number with thousands of digits") from None
    if not isinstance(document, dict):
        raise SymptomError(
            f"{what} holds a {type(document).__name__}; "
            'expected {"class name": ["symptom", ...], ...}'
        )
    return document


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    seen: dict[str, str] = {}
    for key, _ in pairs:
        if normal(key) in seen:
            first = seen[normal(key)]
            both = "" if first == key else f" (as '{first}' and '{key}')"
            raise SymptomError(f"{what} names the class '{key}' twice{both}; join the two lists")
        seen[normal(key)] = key
    return dict(pairs)


def _bind(document: Mapping[str, Any], class_names: Sequence[str], what: str) -> dict[str, Any]:
    given = {normal(key): key for key in document}
    wanted = {normal(name): name for name in class_names}
    if len(wanted) < len(class_names):
        raise SymptomError(
            f"{what} cannot be matched: the dataset's classes differ only in case or underscores: "
            + ", ".join(f"'{name}'" for name in class_names)
        )
    missing = [name for key, name in wanted.items() if key not in given]
    extra = [key for key in given if key not in wanted]
    if missing or extra:
        parts = []
        if missing:
            parts.append("no symptoms for " + ", ".join(f"'{name}'" for name in missing))
        if extra:
            parts.append(
                "symptoms for unknown "
                + ", ".join(f"'{given[key]}'{_meant(key, wanted)}" for key in extra)
            )
        known = ", ".join(f"'{name}'" for name in class_names)
        raise SymptomError(
            f"{what} does not match the dataset's classes: {'; '.join(parts)}. "
            f"The classes are {known}"
        )
    return {name: document[given[key]] for key, name in wanted.items()}


def _meant(key: str, wanted: Mapping[str, str]) -> str:
    close = get_close_matches(key, list(wanted), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(wanted[c]) for c in close)}?)" if close else ""


def _check_class(name: str, given: Any, what: str) -> tuple[str, ...]:
    where = f"{what}, class '{name}'"
    if not isinstance(given, list):
        raise SymptomError(
            f'{where}: got a {type(given).__name__}; expected a list of texts, ["symptom", ...]'
        )
    if not given:
        raise SymptomError(f"{where}: the list is empty; every class needs a symptom")
    if len(given) > MAX_SYMPTOMS:
        raise SymptomError(f"{where}: {len(given)} symptoms, the limit is {MAX_SYMPTOMS}")
    symptoms = []
    for number, value in enumerate(given, 1):
        if not isinstance(value, str):
            raise SymptomError(f"{where}: symptom {number} is {value!r}; expected a text")
        symptom = " ".join(value.split())
        if not symptom:
            raise SymptomError(f"{where}: symptom {number} is blank; fill it in or remove it")
        if len(symptom) > MAX_CHARACTERS:
            raise SymptomError(
                f"{where}: symptom {number} has {len(symptom)} characters, the limit is "
                f"{MAX_CHARACTERS}"
            )
        symptoms.append(symptom)
    return tuple(symptoms)


def _leaks(
    name: str, symptoms: Sequence[str], class_names: Sequence[str], what: str, strict: bool
) -> list[str]:
    """Raise for the class name in its own symptoms, or warn of it where not `strict`; warn of its
    words, and of other classes."""
    words = re.findall(r"\w+", normal(name))
    telling = [w for w in words if len(w) > 2 and w not in _SMALL_WORDS and len(words) > 1]
    others = [other for other in class_names if other != name]
    warnings = []
    for symptom in symptoms:
        if holds_name(name, symptom):
            leak = (
                f"the symptom '{symptom}' holds the class name; symptoms describe what is seen, "
                "without naming the class"
            )
            if strict:
                raise SymptomError(f"{what}, class '{name}': leak: {leak}")
            warnings.append(f"class '{name}': {leak}")
            continue
        warnings += [
            f"class '{name}': the symptom '{symptom}' holds '{word}', a word of the class name"
            for word in telling
            if holds_name(word, symptom)
        ]
        warnings += [
            f"class '{name}': the symptom '{symptom}' names the class '{other}'"
            for other in others
            # "nevus" within "blue nevus" is the longer class's own affair.
            if holds_name(other, symptom) and not holds_name(other, name)
        ]
    return warnings


def _repeats(symptoms: Mapping[str, Sequence[str]]) -> list[str]:
    where: dict[str, list[str]] = {}
    for name, texts in symptoms.items():
        for text in texts:
            where.setdefault(normal(text), []).append(name)
    return [
        f"the symptom '{text}' is given {len(names)} times: in "
        + ", ".join(f"'{name}'" for name in dict.fromkeys(names))
        for text, names in where.items()
        if len(names) > 1
    ]


def load_descriptions(path: str | PathLike[str], class_names: Sequence[str]) -> SymptomSet:
    """Read the JSON file `path` of texts that name their class. Raises SymptomError, also for a
    file that says it holds symptoms: those never stand in the descriptions' place."""
    return load_symptoms(path, class_names, plain="descriptions")
