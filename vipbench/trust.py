"""Which code from outside may run: what the user named, what the user trusts, and the question.

Code that a file brings (plugins of a folder, code in a model's repository) runs only where the
SHA-256 of each of its files is trusted. The digests that are trusted are kept in one file of the
user. Only the command line's own process asks and keeps; its worker processes get what it allowed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vipbench.errors import UsageError, one_line
from vipbench.files import replacing

VARIABLE = "VIPBENCH_ALLOW_CODE"
FOLDER_VARIABLE = "VIPBENCH_CONFIG"
FILE_NAME = "trusted-code.json"
SCHEMA = 1
MOST_BYTES = 32 * 1024**2

# Ends the source of a backbone where code in its model's repository may run.
REMOTE = "+remote-code"

Digests = Sequence[tuple[str, str]]  # of each file its path and its SHA-256


class UntrustedCodeError(BaseException):
    """Code that may not run. Not an Exception: what catches the failures of plugins and models on
    the way up must not take it for one.

    what: the code in words. asked: what asks for it, as `name` knows it. files: all of its files.
    """

    def __init__(self, what: str, asked: str, files: Digests) -> None:
        self.what, self.asked, self.files = what, asked, [(str(p), str(d)) for p, d in files]
        super().__init__(
            f"{one_line(what)} was not run: a file asks for it, and it is not trusted"
            f"\n{listing(self.files)}\nRead it, then answer the question that the same "
            f"command asks in a terminal, or give --allow-code ({VARIABLE}=1) to run it this once"
        )

    def as_json(self) -> dict[str, Any]:
        """The arguments of `require`, as JSON values."""
        return {"what": self.what, "asked": self.asked, "files": self.files}


@dataclass
class _Process:
    """What this process may run. asks: whether it may ask and keep; a worker may not. quiet:
    called before a question, to stop whatever draws on the terminal."""

    everything: bool = False
    named: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    worker: bool = False
    asks: bool = False
    quiet: list[Callable[[], None]] = field(default_factory=list)


_here = _Process()


def ask_here() -> None:
    """Let this process ask at its terminal: it is the command line's own."""
    _here.asks = True


def before_questions(stop: Callable[[], None]) -> None:
    """Have `stop` called before a question is asked."""
    _here.quiet.append(stop)


def allow_everything() -> None:
    """Allow all code to this process and its workers; nothing is kept."""
    _here.everything = True


def name(asked: str | Path) -> None:
    """The user named this: a folder or file of plugins (a Path), or a backbone's source."""
    _here.named.add(_key(asked))


def named(asked: str | Path) -> bool:
    """Whether the user named it, or allowed all code."""
    return _everything() or _key(asked) in _here.named


def sha256(data: bytes) -> str:
    """The digest by which code is trusted."""
    return hashlib.sha256(data).hexdigest()


def require(what: str, asked: str | Path, files: Digests) -> None:
    """Return where all of these files may run; what the user named becomes trusted.

    what: the code in words, for the question. asked: what asks for it; see `name`. Raises
    UntrustedCodeError, and UsageError where the user's file of trusted digests is damaged.
    """
    if _everything() or all(digest in _here.digests for _, digest in files):
        return
    if not _here.worker:
        kept = trusted()
        new = [(path, digest) for path, digest in files if digest not in kept]
        if not new or named(asked) or _answered(what, files, kept):
            _keep(new)
            _here.digests.update(digest for _, digest in files)
            return
    raise UntrustedCodeError(what, _key(asked), files)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """In the block code that may not run raises UsageError, as scripts expect of a call."""
    try:
        yield
    except UntrustedCodeError as error:
        raise UsageError(str(error)) from None


def grants() -> dict[str, Any]:
    """What this process may run, as JSON values for `obey`."""
    return {
        "everything": _everything(),
        "named": sorted(_here.named),
        "digests": sorted(_here.digests),
    }


def obey(grants: Mapping[str, Any]) -> None:
    """Be a worker of the process whose `grants` these are."""
    _here.worker = True
    _here.everything = bool(grants["everything"])
    _here.named, _here.digests = set(grants["named"]), set(grants["digests"])


def seal(values: Any) -> str:
    """A digest of JSON values that nobody else can make: under a key in the user's configuration
    folder, which is made where there is none. Raises OSError."""
    path = trust_file().with_name("key")
    with _locked():
        if not path.exists():
            with replacing(path, "wb", private=True) as file:
                file.write(secrets.token_bytes(32))
        return hmac.new(path.read_bytes(), json.dumps(values).encode(), "sha256").hexdigest()


def listing(files: Digests, kept: Mapping[str, Any] | None = None) -> str:
    """Each file with its digest, a line each."""
    return "\n".join(
        f"  {one_line(path)}  SHA-256 {digest}" + (" (trusted)" if digest in (kept or {}) else "")
        for path, digest in files
    )


def _key(asked: str | Path) -> str:
    return str(asked.resolve()) if isinstance(asked, Path) else asked


def _everything() -> bool:
    given = os.environ.get(VARIABLE, "").strip().lower()
    return _here.everything or given in ("1", "true", "yes", "on")


def _answered(what: str, files: Digests, kept: Mapping[str, Any]) -> bool:
    """Ask at the terminal; False where there is none."""
    if not _here.asks or sys.stdin is None or not sys.stdin.isatty():
        return False
    for stop in _here.quiet:
        stop()
    sys.stdout.flush()
    _discard_typed()
    print(
        f"{one_line(what)} will run with your permissions, because a file asks for it:\n"
        f"{listing(files, kept)}\nTrust these files and run them? [y/N] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    with _interruptible():
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _discard_typed() -> None:
    """What was typed before the question is shown is no answer to it."""
    with contextlib.suppress(ImportError, OSError):
        import termios

        with contextlib.suppress(termios.error):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A run turns Ctrl-C into a flag that a question would never look at."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# The file of trusted digests.


def trust_file() -> Path:
    """Where the digests are kept."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return Path(folder) / FILE_NAME
    from platformdirs import user_config_path

    return user_config_path("vipbench") / FILE_NAME


def trusted() -> dict[str, dict[str, str]]:
    """Digest -> `file`, the path that had it, and `since`. Raises UsageError for a file that is
    not what vipbench writes, or that others can write."""
    path = trust_file()
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_uid != os.geteuid() or state.st_mode & 0o022:
                raise _damaged(path, "other users own it or can write to it")
            data = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    try:
        stored = json.loads(data)
        found = stored["trusted"]
        if stored["schema"] != SCHEMA or len(data) > MOST_BYTES:
            raise ValueError("it has another schema or size")
        return {_digest(digest): _entry(entry) for digest, entry in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"it is damaged ({type(error).__name__}: {error})") from None


def forget(beginnings: Sequence[str]) -> dict[str, dict[str, str]]:
    """Forget the digests that begin so, or those of these files; all where none is given. Returns
    what was forgotten. Raises UsageError for one that is not there, and then forgets none."""
    gone: dict[str, dict[str, str]] = {}
    if not beginnings:
        with contextlib.suppress(UsageError):  # a damaged one goes too
            gone = trusted()
        trust_file().unlink(missing_ok=True)
        return gone
    with _locked():
        kept = trusted()
        for word in beginnings:
            fitting = {
                digest: entry
                for digest, entry in kept.items()
                if (len(word) >= 4 and digest.startswith(word.lower()))
                or entry["file"] in (word, str(Path(word).resolve()))
            }
            if not fitting:
                raise UsageError(
                    f"no trusted file has the digest or the path '{word}'; "
                    "`vipbench trust --list` shows all"
                )
            gone |= fitting
        _write({digest: entry for digest, entry in kept.items() if digest not in gone})
    return gone


def _keep(files: Digests) -> None:
    """Keep new digests. A folder that cannot be written costs a note: they are asked for again."""
    if not files:
        return
    since = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with _locked():
            _write(trusted() | {digest: {"file": path, "since": since} for path, digest in files})
    except OSError as error:
        print(
            f"note: {trust_file()} cannot be written ({error.strerror}): these files are trusted "
            "for this run only",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One process at a time reads and writes."""
    import fcntl  # here, since not every system has it

    folder = trust_file().parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def _write(found: Mapping[str, Any]) -> None:
    """The whole file or nothing, for its owner's eyes alone."""
    with replacing(trust_file(), private=True) as file:
        json.dump({"schema": SCHEMA, "trusted": found}, file, indent=1)
        file.write("\n")


def _digest(value: str) -> str:
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"'{value[:80]}' is no SHA-256")
    return value


def _entry(value: Mapping[str, str]) -> dict[str, str]:
    return {key: str(value[key]) for key in ("file", "since")}


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path}, which holds the digests of the code that you trust, cannot be used: {why}; mend "
        "it, or remove it with `vipbench trust --forget`"
    )
