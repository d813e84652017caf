"""Where a run's parts are computed when it is more than this machine: the key `executor`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from vipbench.errors import UsageError, unknown
from vipbench.runspec import values as words
from vipbench.runspec.errors import sentence
from vipbench.text import listed

BUILT_IN = ("slurm", "ray")
# Options that sbatch takes under the same name.
PLAIN = ("partition", "account", "qos", "constraint", "exclude", "nodelist", "reservation", "gres")
# What the others use. Functions choose the resources themselves.
_BY_FUNCTIONS = ("name", "jobs", "gpus", "per_gpu", "cache_local")
_TAKEN = {"ray": (*_BY_FUNCTIONS, "cpus")}
_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
_UNITS = {"m": 1, "h": 60, "d": 24 * 60}


def _name(value: Any) -> str:
    name = words.text(value, "slurm, ray or module:function")
    module, colon, function = name.partition(":")
    if colon and all(map(str.isidentifier, module.split("."))) and function.isidentifier():
        return name
    if name not in BUILT_IN:
        raise unknown("executor", name, BUILT_IN, "Others are given as module:function.")
    return name


def _number(value: Any) -> int | None:
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"expected a whole number from 1, got {words.show(value)}")
    return int(text)


def _time(value: Any) -> str | None:
    """A limit as Slurm writes it: minutes, H:MM:SS, D-HH:MM:SS, or 90m, 4h, 2d."""
    if value is None:
        return None
    text = str(value).strip()
    if text[-1:] in _UNITS and text[:-1].isdigit() and int(text[:-1]):
        return str(int(text[:-1]) * _UNITS[text[-1]])
    if isinstance(value, bool) or not _TIME.fullmatch(text):
        raise UsageError(f"expected a time such as 4h, 90m or 4:00:00, got {words.show(value)}")
    return text


def _memory(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value).strip().upper()
    if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d*[KMGT]?", text):
        raise UsageError(f"expected an amount of memory such as 24G, got {words.show(value)}")
    return text


def _line(value: Any) -> str | None:
    return None if value is None else words.text(value, "one line")


def _flag(value: Any) -> bool:
    if value not in (None, True, False, "true", "false"):
        raise UsageError(f"expected true or false, got {words.show(value)}")
    return value in (True, "true")


def _word(value: Any) -> str | None:
    """A value of sbatch's. After a space it could be further options, which write other files."""
    if value is None:
        return None
    text = words.text(value, "one word, as sbatch takes it")
    if len(text.split()) > 1:
        raise UsageError(f"expected one word, as sbatch takes it, got {words.show(value)}")
    return text


def _setup(value: Any) -> tuple[str, ...]:
    found = value.splitlines() if isinstance(value, str) else (value or [])
    return tuple(words.text(line, "a line of the job's script") for line in found)


Number = Annotated[int | None, BeforeValidator(_number)]
Word = Annotated[str | None, BeforeValidator(_word)]
Line = Annotated[str | None, BeforeValidator(_line)]


class ExecutorSpec(BaseModel):
    """Who runs the parts of a run.

    name: "slurm", "ray", or `module:function`, which returns a `concurrent.futures.Executor`.
    jobs: into how many parts the run is cut. at_once: how many of them run at the same time. time,
    mem, cpus, gpus: what each part gets; time and memory as Slurm writes them. per_gpu: workers
    that share one GPU. partition, account, qos, constraint, exclude, nodelist, reservation, gres:
    as sbatch takes them. setup: lines of the script before the command. python: the interpreter on
    the nodes. container: an image that apptainer runs it in. cache_local: whether each node keeps a
    copy of the features that it reads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, BeforeValidator(_name)]
    jobs: Number = None
    at_once: Number = None
    time: Annotated[str | None, BeforeValidator(_time)] = None
    mem: Annotated[str | None, BeforeValidator(_memory)] = None
    cpus: Number = None
    gpus: Number = None
    per_gpu: Number = None
    partition: Word = None
    account: Word = None
    qos: Word = None
    constraint: Word = None
    exclude: Word = None
    nodelist: Word = None
    reservation: Word = None
    gres: Word = None
    setup: Annotated[tuple[str, ...], BeforeValidator(_setup)] = ()
    python: Line = None
    container: Line = None
    cache_local: Annotated[bool, BeforeValidator(_flag)] = False

    @property
    def code(self) -> tuple[str, ...]:
        """What of it starts programs or is imported; trusted as other code that a file names."""
        own = (self.name if ":" in self.name else None, *self.setup, self.python, self.container)
        return tuple(text for text in own if text)

    @property
    def seconds(self) -> int | None:
        """The time limit; None where none is given, or 0, which Slurm takes for no limit."""
        if self.time is None:
            return None
        days, _, clock = self.time.rpartition("-")
        given = [int(part) for part in clock.split(":")]
        # Slurm reads 90 as minutes, 90:30 as minutes and seconds, 1-12 as days and hours.
        first = 3600 if days or len(given) == 3 else 60
        scale = (first, first // 60, first // 3600)
        found = int(days or 0) * 86400 + sum(n * s for n, s in zip(given, scale, strict=False))
        return found or None

    @property
    def all_gpus(self) -> int:
        """How many GPUs each part asks for, by `gpus` or by `gres`, as in `gpu:a100:2`."""
        found = re.findall(r"(?:^|,)gpu(?::[^:,\d][^:,]*)?(?::(\d+))?(?=,|$)", self.gres or "")
        return self.gpus or sum(int(number or 1) for number in found)

    def as_yaml(self) -> str | dict[str, Any]:
        """The value of a suite file that reads back as this."""
        given = {key: getattr(self, key) for key in type(self).model_fields}
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v}
        return self.name if set(found) == {"name"} else found


def executor_of(value: Any) -> Any:
    """An executor as a flag or a suite gives it: a word, or a mapping."""
    if value is None or isinstance(value, ExecutorSpec):
        return value
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or "name" not in given:
        raise UsageError(
            f"expected slurm, ray or module:function, or 'name: …' with 'jobs: …', "
            f"got {words.show(value)}"
        )
    for key in given:
        if key not in ExecutorSpec.model_fields:
            raise unknown("key of executor", str(key), ExecutorSpec.model_fields)
    try:
        found = ExecutorSpec.model_validate(dict(given))
    except ValidationError as error:
        inner = error.errors(include_url=False)[0]
        raise UsageError(sentence(inner, ExecutorSpec.model_fields, "")) from None
    taken = _TAKEN.get(found.name, _BY_FUNCTIONS)
    unused = [key for key, value in given.items() if value and key not in taken]
    if found.name != "slurm" and unused:
        raise UsageError(
            f"executor {found.name} does not use {listed(unused)}; it takes {listed(taken)}"
        )
    return found


def with_flags(
    base: ExecutorSpec | None,
    name: str | None,
    jobs: int | None,
    more: str | None,
    cache_local: bool = False,
) -> ExecutorSpec | None:
    """A suite's executor, and the flags --executor, --jobs, --slurm and --cache-local on it. Raises
    UsageError."""
    given: dict[str, Any] = {}
    for item in words.split(more) if more else ():
        key, equals, text = item.partition("=")
        if not equals or not text:
            raise UsageError(
                f"--slurm: expected KEY=VALUE with commas between, got '{item}'; a value with "
                "commas goes in quotes: \"exclude='n1,n2'\""
            )
        given[key.strip()] = words.unquoted(text.strip())
    if name is not None and (base is None or base.name != name):
        base = None
    if name is None and base is None:
        if more or jobs or cache_local:
            flag = "--slurm" if more else "--jobs" if jobs else "--cache-local"
            raise UsageError(f"{flag} requires --executor")
        return None
    if more and (name or (base and base.name)) != "slurm":
        raise UsageError("--slurm requires --executor slurm")
    kept = {} if base is None else {k: getattr(base, k) for k in base.model_fields_set}
    found = {**kept, **({"name": name} if name else {}), **given}
    found |= {"cache_local": True} if cache_local else {}
    return executor_of({**found, "jobs": jobs} if jobs is not None else found)  # type: ignore[no-any-return]
