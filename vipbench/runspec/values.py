"""The values of a RunSpec: what a flag or a suite may say, and what it means.

Every function takes a value as the command line (text) or YAML gives it and returns the checked
form, or raises UsageError saying what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from vipbench.errors import UsageError, unknown
from vipbench.runspec.yaml import Scalar, format_scalar, parse_scalar

T = TypeVar("T")
MAX_LIST = 10_000
MAX_SHOTS = 10**7

# Each view of each image is encoded: more would never end.
MOST_VIEWS = 10_000
MARKS = ",[]='\""  # what has a meaning inside the brackets of a method
RESERVED = ("name", "label", "hparams", "note")


def split(text: str, separator: str = ",") -> list[str]:
    """`text` at each `separator` that is not inside [brackets] or quotes; parts are stripped."""
    parts, depth, quote, start, fresh, closed = [], 0, "", 0, True, -2
    for i, char in enumerate(text):
        if quote:
            if char == quote:
                quote, closed = "", i
        elif char in "'\"" and (fresh or (closed == i - 1 and char == text[closed])):
            quote = char  # a doubled mark goes on; one in another place is an apostrophe
        elif char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
        elif char == separator and depth <= 0:
            parts.append(text[start:i].strip())
            start = i + 1
        fresh = char in ",=[" or (fresh and char == " ")
    return [*parts, text[start:].strip()]


def items(value: Any, what: str) -> list[Any]:
    """A list's items, or the parts of a text with commas; never empty."""
    found = split(value) if isinstance(value, str) else value
    if isinstance(found, bool | int | float | Mapping):
        found = [found]
    if not isinstance(found, Sequence) or len(found) == 0 or "" in found:
        raise UsageError(f"expected {what}, got {show(value)}")
    if len(found) > MAX_LIST:
        raise UsageError(f"{len(found):,} values are too many, the limit is {MAX_LIST:,}")
    return list(found)


def once(values: Iterable[T], name: Callable[[T], str] = str) -> tuple[T, ...]:
    """`values`, all different."""
    seen: dict[str, T] = {}
    for value in values:
        if name(value) in seen:
            raise UsageError(f"{show(name(value))} is given twice")
        seen[name(value)] = value
    return tuple(seen.values())


def text(value: Any, what: str) -> str:
    """One line of printable text."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UsageError(f"expected {what}, got {show(value)}")
    return value.strip()


def unquoted(given: str) -> str:
    """What a pair of quotes around a whole text holds, or the text."""
    quoted = given[:1] in ("'", '"') and given[-1:] == given[0] and len(given) > 2
    return given[1:-1] if quoted else given


def word(value: Any) -> str:
    """A method's name."""
    name = text(value, "a method's name")
    if any(char in " ,=[]'\"" for char in name):
        raise UsageError(f"expected a method's name, or NAME[hparam=value,...], got {show(value)}")
    return name


def names(value: Any) -> tuple[str, ...]:
    """Datasets or backbones: `NAME` or `NAME:ARG`, separated by commas in a text."""
    found = []
    for item in items(value, "names separated by commas"):
        if isinstance(item, str) and any("\ud800" <= char <= "\udfff" for char in item):
            raise UsageError(f"{show(item)} is a name that is not UTF-8; rename the file or folder")
        name = text(item, "a name")
        if isinstance(value, str):
            name = unquoted(name)
        head, colon, arg = name.partition(":")
        if not head.strip() or (colon and not arg.strip()):
            raise UsageError(f"expected NAME or NAME:ARG, got {show(item)}")
        found.append(name)
    return once(found)


def backbones(value: Any) -> tuple[str, ...]:
    """Backbones as `names`, each also as `LABEL=NAME[:ARG]`; in a mapping or a list of such, the
    key is the label."""
    if isinstance(value, str):
        found = list(names(value))
    else:
        parts = [value] if isinstance(value, Mapping) else items(value, "names of backbones")
        found = []
        for part in parts:
            if not isinstance(part, Mapping):
                found += names([part])
                continue
            if not part:
                raise UsageError("expected names of backbones, got an empty mapping")
            for name, source in part.items():
                name = label(name)
                if any(mark in name for mark in ":=,"):
                    raise UsageError(f"the label {show(name)} holds a colon, comma or =")
                found += [f"{name}={source}" for source in names([source])]
    for one in found:
        given, source = labelled(one)
        if given != given.strip() or not source or ("=" in one and one.startswith("=")):
            raise UsageError(f"expected NAME, NAME:ARG or LABEL=NAME:ARG, got {show(one)}")
    once(found, lambda one: labelled(one)[1])
    return once(found, lambda one: labelled(one)[0] or one)


def labelled(backbone: str) -> tuple[str, str]:
    """The label ("" for none) and the source of a backbone `[LABEL=]NAME[:ARG]`."""
    given, equals, source = backbone.partition("=")
    return (given, source) if equals and ":" not in given else ("", backbone)


def shots(value: Any) -> tuple[Any, ...]:
    """Images per class: whole numbers from 1, or "full"."""
    expected = "numbers of images per class such as 1,2,4 or the word full"
    found: list[int | str] = []
    for item in items(value, expected):
        if item == "full":
            found.append(item)
            continue
        number = _whole(item, expected)
        if number < 1:
            raise UsageError(
                f"{number} shots cannot be run: zero-shot methods run without a support set by "
                "themselves; shots must be 1 or more, or full"
            )
        if number > MAX_SHOTS:
            raise UsageError(f"{number} shots are too many; 'full' takes every training image")
        found.append(number)
    return once(found)


def seeds(value: Any) -> tuple[int, ...]:
    """Whole numbers from 0; `1-8` is 1 to 8."""
    expected = "seeds such as 1,2,3 or 1-8"
    found: list[int] = []
    for item in items(value, expected):
        if isinstance(item, str) and "-" in item.strip()[1:]:
            low, _, high = item.strip().partition("-")
            first, last = _whole(low, expected), _whole(high, expected)
            if first > last:
                raise UsageError(f"the range {item} runs backwards; write {last}-{first}")
            if last - first >= MAX_LIST:
                raise UsageError(f"the range {item} is too long, the limit is {MAX_LIST:,} seeds")
            found.extend(range(first, last + 1))
        else:
            found.append(_whole(item, expected))
    if any(not 0 <= seed < 2**32 for seed in found):
        raise UsageError(f"expected seeds from 0 to 4294967295, got {show(value)}")
    return once(found)


def views(value: Any) -> int | str:
    """ "per-epoch", "none", or how many, from 1 to MOST_VIEWS."""
    if value in ("per-epoch", "none"):
        return str(value)
    expected = f"per-epoch, none or a number of views from 1 to {MOST_VIEWS}"
    number = _whole(value, expected)
    if not 1 <= number <= MOST_VIEWS:
        raise UsageError(f"expected {expected}, got {number}; 'none' trains without augmentation")
    return number


def seconds(value: Any) -> float:
    """A time above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"expected a number of seconds, got {show(value)}")
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"expected a number of seconds above 0, got {value}")
    return float(value)


def path(value: Any) -> Path | None:
    """A path; `~/` is the home folder."""
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise UsageError(f"expected a path, got {show(value)}")
    return Path(value).expanduser() if value.startswith("~/") else Path(value)


def required_path(value: Any) -> Path:
    """A path, not nothing."""
    found = path(value)
    if found is None:
        raise UsageError("expected a path, got nothing")
    return found


def title(value: Any) -> str | None:
    """A heading; line breaks become spaces."""
    if value is None:
        return None
    return text(" ".join(value.split()) if isinstance(value, str) else value, "a line of text")


def label(value: Any) -> str:
    """A row's heading in the table."""
    return text(value, "a label, one line of text")


def note(value: Any) -> str:
    """A note below tables of the row; may be empty."""
    return "" if value == "" else text(value, "a note, one line of text")


def hparams(value: Any) -> dict[str, Scalar]:
    """Hyperparameter -> one plain value."""
    if not isinstance(value, Mapping):
        raise UsageError(f"expected hyperparameters, got {show(value)}")
    for name, given in value.items():
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
            raise UsageError(f"expected a hyperparameter's name, got {show(name)}")
        if not (given is None or isinstance(given, bool | int | float | str)):
            raise UsageError(f"'{name}' must be one plain value, got {show(given)}")
        if isinstance(given, float) and not math.isfinite(given):
            raise UsageError(f"'{name}' must be a finite number, got {given}")
        if isinstance(given, str) and not given.isprintable():
            raise UsageError(f"'{name}' must be one line of printable text, got {show(given)}")
    return dict(value)


def method_text(value: str) -> tuple[str, dict[str, Scalar]]:
    """`vip` or `vip[context=off,merge=mean]` -> name, hyperparameters."""
    name, bracket, rest = value.partition("[")
    if not bracket:
        return word(value), {}
    if not rest.endswith("]"):
        raise UsageError(f"{show(value)} lacks its closing bracket; write NAME[hparam=value,...]")
    found: dict[str, Scalar] = {}
    for part in split(rest[:-1]):
        key, equals, given = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            raise UsageError(f"expected hparam=value between the brackets of {show(value)}")
        if key in found:
            raise UsageError(f"'{key}' is given twice in {show(value)}")
        if given[:1] not in ("'", '"') and set("[]") & set(given):
            raise UsageError(f"brackets inside the brackets of {show(value)} must be in quotes")
        found[key] = scalar(given, key)
    return word(name), hparams(found)


def default_label(name: str, settings: Mapping[str, Scalar]) -> str:
    """`name`, or `name[hparam=value,...]`, which `method_text` reads back."""
    if not settings:
        return name
    inner = ",".join(f"{key}={format_scalar(v, quote=MARKS)}" for key, v in settings.items())
    return f"{name}[{inner}]"


def setting(flag: str) -> tuple[str, str, Scalar]:
    """`method.hparam=value` of --set -> method, hparam, value."""
    left, equals, value = flag.partition("=")
    method, dot, hparam = left.strip().rpartition(".")
    if not (equals and dot and method and hparam.isidentifier()):
        raise UsageError(f"--set takes method.hparam=value, such as vip.context=off, got '{flag}'")
    return method, hparam, scalar(value.strip(), f"{method}.{hparam}")


def scalar(value: str, name: str) -> Scalar:
    """One value of the command line, read as YAML would."""
    try:
        return parse_scalar(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def show(value: Any) -> str:
    """`value` as a message quotes it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{'on' if value else 'off'} (a yes-or-no value; put the word in quotes)"
    shown = f"'{value}'" if isinstance(value, str) and value.isprintable() else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _whole(value: Any, expected: str) -> int:
    digits = value.strip() if isinstance(value, str) else ""
    sign = digits[:1] in ("+", "-")
    if digits[sign:].isascii() and digits[sign:].isdigit() and len(digits) < 20:
        return int(digits)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"expected {expected}, got {show(value)}")
    return value


FeaturePrecision: TypeAlias = Literal["fp32", "tf32", "bf16"]
MOST_WORKERS = 256
# Accepted, but vipbench has never run on one.
UNTESTED_DEVICES = ("mps", "xpu")
_DEVICES = re.compile(r"cuda:\d{1,3}(,cuda:\d{1,3})*")


def device(value: Any) -> str:
    """ "auto", "cpu", "cuda", "mps", "xpu", or CUDA devices by number such as "cuda:0,cuda:2", also
    as a list."""
    parts = [value] if isinstance(value, str) else value
    text = ""
    if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
        text = ",".join(word.strip() for part in parts for word in part.split(","))
    if text not in ("auto", "cpu", "cuda", *UNTESTED_DEVICES) and not _DEVICES.fullmatch(text):
        raise UsageError(
            "expected 'auto', 'cpu', 'cuda', 'mps' or 'xpu', or CUDA devices such as "
            f"'cuda:0,cuda:1', got {show(value)}"
        )
    return ",".join(once(text.split(",")))


def cuda_numbers(device: str) -> list[int] | None:
    """The CUDA devices that `device` names by number; None where it names none."""
    if not device.startswith("cuda:"):
        return None
    return [int(part.removeprefix("cuda:")) for part in device.split(",")]


def workers(value: Any) -> int | None:
    """How many worker processes, from 1; None: as many as there are CUDA devices, else one."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_WORKERS:
        raise UsageError(
            f"expected a number of worker processes from 1 to {MOST_WORKERS}, got {show(value)}"
        )
    return value


def paths_by_dataset(value: Any) -> dict[str, Path]:
    """Dataset -> file or folder; a path alone is for every dataset."""
    if value is None:
        return {}
    if isinstance(value, str | Path):
        return {"*": required_path(value)}
    if not isinstance(value, Mapping):
        raise UsageError(f"expected 'DATASET: PATH' lines or one path, got {show(value)}")
    return {text(name, "a dataset"): required_path(file) for name, file in value.items()}


def dataset_keys(datasets: Iterable[str]) -> list[str]:
    """What may name a dataset in `symptoms` or `images`: `NAME:ARG` as given, the name of a file
    or folder ARG, by which tables call such a dataset, or "*" for all."""
    files = [Path(arg) for _, _, arg in (source.partition(":") for source in datasets) if arg]
    return list(dict.fromkeys([*datasets, "*", *(f.stem for f in files), *(f.name for f in files)]))


def path_flags(
    flags: Iterable[str], datasets: Sequence[str], option: str = "--images"
) -> dict[str, Path]:
    """`[DATASET=]PATH` flags; a PATH alone is for every dataset."""
    found: dict[str, Path] = {}
    keys = dataset_keys(datasets)
    for flag in flags:
        name, file = cut_path(flag, keys)
        if not name and "=" in flag and not Path(flag).exists():
            given = flag.partition("=")[0]
            raise unknown("dataset", given, datasets, f"{option} takes [DATASET=]PATH.")
        if (name or "*") in found:
            whose = f"'{name}'" if name else "every dataset"
            raise UsageError(f"{option} is given twice for {whose}")
        found[name or "*"] = required_path(file)
    return found


def cut_path(flag: str, keys: Sequence[str]) -> tuple[str, str]:
    """Dataset ("" where none of `keys` is named) and path of a flag `[DATASET=]PATH`."""
    # A dataset such as `npz:PATH` may hold a `=` itself.
    cuts = [i for i, char in enumerate(flag) if char == "=" and flag[:i] in keys]
    return (flag[: cuts[-1]], flag[cuts[-1] + 1 :]) if cuts else ("", flag)
