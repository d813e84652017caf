"""The folder OUT/parts of a run that is cut: what lies there, and who writes it.

run.json          the run: its id, the whole RunSpec's digest, each part's numbers; the submitter's
NNN.yaml          a part: a suite that can be run by itself; written once
NNN.legs          a line of JSON for the beginning, each batch and the end of each of its legs, that
                  is, starts of its job; the job's
NNN.plan          the cells that it was planned to have; the job's
NNN.log           what its jobs printed
encode-NNN.yaml   a pair of backbone and dataset, whose images are encoded for all parts; its jobs
                  write encode-NNN.legs and encode-NNN.log
NNN/*.done        what it brought, a file for each batch; the job's, removed by the collector
done              the keys of the cells that have a result in the store; the collector's
submissions       a line of JSON for each submission; the submitter's
cancelled         there while the run is cancelled
submit.sh         the script that Slurm got
code/             the plugins that the run names, as they were when it was submitted
hashes/           of each backbone and plugin method what the first part found: its name and hash
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vipbench.engine.cluster import sealed
from vipbench.errors import UsageError
from vipbench.files import make_folder, write
from vipbench.results.records.plan import PlannedCell, planned_cell
from vipbench.runspec.executor import executor_of
from vipbench.runspec.run import RunSpec

T = TypeVar("T")

FOLDER = "parts"
SCHEMA = 1
BATCH, HASHES, CHANGED = ".done", "hashes", "changed"
# How a leg ended whose time was over; the part is continued.
TIME_LIMIT = "time limit"
# How often things are looked at, in seconds, times this; tests have no minutes.
PACE_VARIABLE = "VIPBENCH_CLUSTER_PACE"


# What the lines of a part's legs hold beside the time, by their kind; others were altered.
_LEG: dict[str, dict[str, Any]] = {
    "begin": {"stack": int},
    "batch": {},
    "broken": {"sentences": list},
    "plan": {"most": int},
    "end": {"status": str, "message": str},
}
_PART = {"number": int, "order": int, "cells": int, "without_support": bool}
# What run.json holds in any case.
_RUN: dict[str, type] = {
    **dict.fromkeys(("executor", "environment", "grants"), dict),
    **dict.fromkeys(("digest", "package", "cwd"), str),
    **{"parts": list, "lead": int, "encodes": list},
}


def paced(seconds: float) -> float:
    """`seconds`, or less in a test."""
    return seconds * float(os.environ.get(PACE_VARIABLE) or 1)


@dataclass(frozen=True)
class Part:
    """One part. order: its place in the grid. cells: at most so many. without_support: whether
    cells without a support set belong to it."""

    number: int
    order: int
    cells: int
    without_support: bool


@dataclass(frozen=True)
class EncodePart:
    """A pair of backbone and dataset, whose images are encoded ahead. parts: those that need it."""

    number: int
    parts: tuple[int, ...]

    @property
    def name(self) -> str:
        """What its files are named after."""
        return encode_name(self.number)


def encode_name(number: int) -> str:
    """What the files of an encode part are named after."""
    return f"encode-{number:03d}"


@dataclass(frozen=True)
class Legs:
    """The legs of a part so far. begun: of each what it wrote at its beginning, with `last`, the
    time of its last line, and `end`, what it wrote there, or None."""

    begun: tuple[dict[str, Any], ...] = ()

    def stack(self, most: int) -> int:
        """How many cells the next leg is to train together, at most `most`: half as many after each
        two legs in a row that brought no new cell; 0 where that was one cell already. Whoever
        starts a part again that was given up begins anew, with more time."""
        whole, fruitless = most, 0
        for leg in self.begun:
            if leg["end"] is not None and leg["end"]["status"] == "given up":
                most, fruitless = whole, 0
                continue
            most = min(most, leg["stack"], leg.get("most") or most)
            fruitless = 0 if leg["batches"] else fruitless + 1
            if fruitless == 2:
                most, fruitless = most // 2, 0
        return most

    @property
    def last(self) -> dict[str, Any] | None:
        """The last one."""
        return self.begun[-1] if self.begun else None

    @property
    def broken(self) -> list[str]:
        """What plugins the last one left out, in sentences."""
        return [] if self.last is None else list(self.last["broken"])

    @property
    def end(self) -> str | None:
        """How the last one ended; None where it is at work or was killed."""
        return None if self.last is None or self.last["end"] is None else self.last["end"]["status"]


class ChangedError(UsageError):
    """Something that all parts of a run must share differs here."""


class Parts:
    """OUT/parts."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.folder = self.out / FOLDER

    @property
    def there(self) -> bool:
        """Whether the run in this folder was cut."""
        return (self.folder / "run.json").exists()

    def run(self) -> dict[str, Any]:
        """What run.json holds. Raises UsageError."""
        path = self.folder / "run.json"
        if self.folder.is_symlink():
            raise UsageError(f"{self.folder} is a link; remove it")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"{self.out} holds no parts; `vipbench run --executor ... --out {self.out}` "
                "creates them"
            ) from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise UsageError(f"{path} was written by another version of vipbench")
        if not re.fullmatch(r"[0-9a-f]{8}", str(found.get("id"))):  # part of the jobs' names
            raise UsageError(f"{path} was altered: its id is {found.get('id')!r}")
        wrong = [name for name, kind in _RUN.items() if not isinstance(found.get(name), kind)]
        for part in () if wrong else found["parts"]:
            kinds = _PART if isinstance(part, dict) and part.keys() == _PART.keys() else None
            if kinds is None or any(type(part[name]) is not kinds[name] for name in kinds):
                wrong = ["parts"]
        for one in () if wrong else found["encodes"]:
            if not (
                isinstance(one, dict)
                and one.keys() == {"number", "parts"}
                and isinstance(one["parts"], list)
                and all(type(number) is int for number in (one["number"], *one["parts"]))
            ):
                wrong = ["encodes"]
        if wrong or not found["parts"]:
            raise UsageError(f"{path} was altered: {', '.join(wrong) or 'parts'}")
        executor_of(found["executor"])
        return found

    def copied_from(self) -> Path | None:
        """The folder that this one is a copy of, whose jobs those of the run are; None where it is
        none, or was moved. Raises UsageError."""
        run = self.run()
        first = Path(str(run.get("out") or self.out))
        with suppress(UsageError, OSError, ValueError):
            if not self.out.samefile(first) and Parts(first).run()["id"] == run["id"]:
                return first
        return None

    def parts(self) -> dict[int, Part]:
        """Those of the run, by number."""
        return {one["number"]: Part(**one) for one in self.run()["parts"]}

    def encodes(self) -> dict[int, EncodePart]:
        """What is encoded ahead, by number."""
        found = self.run()["encodes"]
        return {one["number"]: EncodePart(one["number"], tuple(one["parts"])) for one in found}

    def part(self, number: int) -> Part:
        """One of them. Raises UsageError."""
        return self._one("part", self.parts(), number)

    def encode(self, number: int) -> EncodePart:
        """One of what is encoded ahead. Raises UsageError."""
        return self._one("encode part", self.encodes(), number)

    def _one(self, what: str, known: Mapping[int, T], number: int) -> T:
        if number not in known:
            there = f"there are {min(known)} to {max(known)}" if known else "there is none"
            raise UsageError(f"there is no {what} {number} in {self.folder}; {there}")
        return known[number]

    # A part's files are named after its number, those of an encode part after its name.

    def file(self, number: int | str, ending: str) -> Path:
        """NNN or encode-NNN, and an ending."""
        stem = number if isinstance(number, str) else f"{number:03d}"
        return self.folder / f"{stem}{ending}"

    def spec(self, number: int | str) -> RunSpec:
        """The RunSpec of a part. Raises UsageError."""
        return RunSpec.from_yaml(self.file(number, ".yaml"))

    # Legs.

    def note(self, number: int | str, what: str, **fields: Any) -> None:
        """Add a line to a part's legs. Raises OSError."""
        line = {"what": what, "at": round(time.time(), 1), **fields}
        _append(self.file(number, ".legs"), line)

    def legs(self, number: int | str) -> Legs:
        """What the part's jobs wrote."""
        begun: list[dict[str, Any]] = []
        for line in _lines(self.file(number, ".legs")):
            what = str(line.pop("what", ""))
            kinds = _LEG.get(what)
            if kinds is None or not all(isinstance(line.get(k), t) for k, t in kinds.items()):
                continue
            if what == "begin":
                begun.append({**line, "last": line["at"], "batches": 0, "end": None, "broken": []})
            elif begun:
                begun[-1]["last"] = line["at"]
                if what == "batch":
                    begun[-1]["batches"] += 1
                elif what == "broken":
                    begun[-1]["broken"] = [str(sentence) for sentence in line["sentences"]]
                elif what == "plan":
                    begun[-1]["most"] = line["most"]
                elif what == "end":
                    begun[-1]["end"] = line
        return Legs(tuple(begun))

    # What must be the same for all parts.

    def require_same(self, hashes: Mapping[str, str]) -> None:
        """Raise ChangedError where an earlier part of the run found another hash of one of these
        names. Raises OSError."""
        folder = self.folder / HASHES
        make_folder(folder, self.out)
        for name, own in hashes.items():
            file = folder / hashlib.sha256(name.encode()).hexdigest()[:32]
            first = f"{name}\t{own}"
            if not file.exists():
                part = file.with_name(f".{secrets.token_hex(8)}")
                write(part, first)
                with suppress(FileExistsError):
                    os.link(part, file)  # the first one stays
                part.unlink()
            if (there := file.read_text(encoding="utf-8")) != first:
                (folder / CHANGED).touch()
                raise ChangedError(
                    f"{name} differs between the parts of this run (hash {own[:12]} here, "
                    f"{there.rpartition(chr(9))[2][:12]} in other parts). Run `vipbench cancel "
                    f"{self.out}`, make it the same on all nodes, and repeat the `vipbench run`"
                )

    # Submissions.

    def note_submission(self, **fields: Any) -> None:
        """Add a line. Raises OSError."""
        _append(self.folder / "submissions", {"at": round(time.time(), 1), **fields}, sync=True)

    def submissions(self) -> list[dict[str, Any]]:
        """All of this run."""
        run = self.run()["id"]
        return [line for line in _lines(self.folder / "submissions") if line.get("run") == run]

    # Cells.

    def plan(self, number: int) -> list[PlannedCell] | None:
        """The cells of a part; None where it was not planned yet, or its plan is damaged."""
        try:
            found = sealed.read_json(self.file(number, ".plan"))
        except sealed.DamagedError:
            return None
        return None if found is None else [planned_cell(cell) for cell in found]

    def batches(self, number: int) -> list[Path]:
        """The files of a part, in the order in which they came."""
        try:
            names = os.listdir(self.file(number, ""))  # noqa: PTH208 - its files are sorted anyway
        except FileNotFoundError:
            return []
        return [self.file(number, "") / name for name in sorted(names) if name.endswith(BATCH)]

    def done(self) -> dict[str, str]:
        """key -> status of the cells that had a result in the store, when that was last noted."""
        try:
            found = sealed.read_json(self.folder / "done", {})
        except sealed.DamagedError:
            return {}
        return dict(found)

    @property
    def cancelled(self) -> bool:
        """Whether the run is cancelled."""
        return (self.folder / "cancelled").exists()


def _append(path: Path, line: dict[str, Any], sync: bool = False) -> None:
    """One write of one line, so that lines of several jobs never mix."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    try:
        # Whoever was killed while it wrote may have left a line without its end.
        os.write(handle, ("\n" + json.dumps(line, separators=(",", ":")) + "\n").encode())
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; one that a killed process or a full disk cut short is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("at"), int | float):
            yield found
