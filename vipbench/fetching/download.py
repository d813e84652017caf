"""One file over HTTP: continued where an earlier attempt broke off, checked by its digest, put in
its place whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from vipbench.errors import UsageError
from vipbench.fetching import offline
from vipbench.files import open_own

Progress = Callable[[int, int | None], None]

# Attempts in a row that bring nothing, and the pause before the second, in seconds.
ATTEMPTS, PAUSE = 3, 0.5
TIMEOUT = 30.0
CHUNK = 1 << 18
# A server that takes so many times TIMEOUT for the head of its answer counts as silent, and so does
# one that sends fewer bytes in TIMEOUT seconds.
HEAD, LEAST = 3, 1 << 12
# Bytes of a body that says no length, and bytes of the disk that a download leaves free.
MOST_UNKNOWN, RESERVE = 16 << 30, 1 << 30
PASSING = (408, 425, 429, 500, 502, 503, 504)
AGAIN = "run the same command to resume"


class FetchError(UsageError):
    """A file could not be brought; the message says why and what to do."""


class _CutError(Exception):
    """The server stopped before the end."""


class _TooLargeError(Exception):
    """The server sends, or is about to send, more than there is room for."""


# Errors of the connection; others, of the disk, are no reason to try again.
_NETWORK = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    ConnectionError,
    TimeoutError,
    ValueError,  # of an address to which the server redirects
    _CutError,
)


def quiet(done: int, total: int | None) -> None:
    """Progress that nobody sees."""


def download(
    url: str,
    target: Path,
    digest: str,
    *,
    headers: Mapping[str, str] | None = None,
    progress: Progress = quiet,
    hint: str = "",
) -> None:
    """Bring `url` to `target`.

    digest: `md5:…`, `sha256:…`, or `git:…` (SHA-1 of a blob), or "" where none is known. What an
    earlier call left in `target.part` is gone on from. headers: sent to the URL's own host alone.
    progress: called with the bytes received and the total. hint: ends every message.
    Raises FetchError; what was received stays for the next call, unless it is wrong.
    """
    if (variable := offline.forbidden()) is not None:
        raise FetchError(_end(f"{url} may not be fetched: {variable} forbids connections", hint))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with _locked(part) as file:
            inherited = file.seek(0, 2) > 0
            _receive(url, file, headers or {}, progress, hint)
            problem = mismatch(part, digest)
            if problem and inherited:
                # The beginning may be of another version of the file.
                file.truncate(0)
                _receive(url, file, headers or {}, progress, hint)
                problem = mismatch(part, digest)
            if problem:
                part.unlink()
                raise FetchError(
                    _end(
                        f"{url} returned another file than expected: {problem}; it was removed",
                        hint,
                    )
                )
            part.replace(target)
    except OSError as error:
        place = error.filename or target
        raise FetchError(_end(f"'{place}' cannot be written: {error.strerror}", hint)) from error


def mismatch(path: Path, digest: str) -> str:
    """What is wrong with the digest of `path`; "" where it is as expected, or none is known."""
    kind, _, expected = digest.partition(":")
    if not expected:
        return ""
    how: Any = hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        how.update(b"blob %d\0" % path.stat().st_size)
    else:
        how = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            how.update(chunk)
    found = how.hexdigest()
    name = {"md5": "MD5", "sha256": "SHA-256", "git": "git digest"}[kind]
    return "" if found == expected else f"its {name} is {found}, not {expected}"


def _receive(
    url: str, file: IO[bytes], headers: Mapping[str, str], progress: Progress, hint: str
) -> None:
    """Fill `file` from where it ends to the end."""
    tries = 0
    while True:
        before = file.seek(0, 2)
        try:
            _attempt(url, file, headers, progress)
            return
        except _TooLargeError as error:
            raise FetchError(_end(f"{url} {error}", hint)) from None
        except _NETWORK as error:
            passing = True
            if isinstance(error, urllib.error.HTTPError):
                passing = error.code in PASSING
                error.close()
            done = file.seek(0, 2)
            tries = 1 if done - before > LEAST else tries + 1
            if tries < ATTEMPTS and passing:
                time.sleep(PAUSE * tries)
                continue
            raise FetchError(_end(_why(url, error, done), hint)) from error


def _attempt(url: str, file: IO[bytes], headers: Mapping[str, str], progress: Progress) -> None:
    start = file.seek(0, 2)
    asked = {"Accept-Encoding": "identity", "User-Agent": "vipbench", **headers}
    if start:
        asked["Range"] = f"bytes={start}-"
    if urlsplit(url).scheme not in ("http", "https"):
        raise _CutError(f"{url} is not an http(s) address")
    request = urllib.request.Request(url, headers=asked)
    opener = urllib.request.build_opener(_Redirects)
    with _exchange(opener, request) as receive:
        try:
            reply = receive(HEAD * TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not start:
                raise
            error.close()
            whole = error.headers.get("Content-Range", "").rpartition("/")[2] == str(start)
        else:
            _keep_body(reply, receive, file, start, progress)
            return
    if not whole:
        file.truncate(0)
        _attempt(url, file, headers, progress)


def _keep_body(
    reply: Any, receive: Callable[[float], Any], file: IO[bytes], start: int, progress: Progress
) -> None:
    """Append the body of an answer, of which `receive` gives the parts, to `file`."""
    done, total = start, _total(reply, start)
    if start and (reply.status != 206 or _start(reply) != start):
        if reply.status == 206:
            raise _CutError("the server resumed at another byte than requested")
        done, total = 0, _total(reply, 0)  # it does not continue: from the beginning
        file.truncate(0)
        file.seek(0)
    if total is not None and total - done > (room := _room(file)):
        raise _TooLargeError(f"has {size(total)}, and the disk has room for {size(room)}")
    since, at = time.monotonic(), done
    while chunk := receive(TIMEOUT):
        if total is None and (done > MOST_UNKNOWN or _room(file) < 0):
            file.truncate(0)
            raise _TooLargeError(f"states no length and does not end after {size(done)}")
        file.write(chunk)
        done += len(chunk)
        progress(done, total)
        if (now := time.monotonic()) - since > TIMEOUT:
            if done - at < LEAST:
                raise TimeoutError
            since, at = now, done
    file.flush()
    if total is not None and done != total:
        raise _CutError("the connection broke")


@contextmanager
def _exchange(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request
) -> Iterator[Callable[[float], Any]]:
    """Gives a function that returns the next part of an exchange: the answer once its head is
    there, then bytes, b"" at the end. It takes seconds, and raises TimeoutError after them and what
    the exchange raises. urllib's clock is for each read alone, and one line of a head, of the
    length of a chunk or after the last one may take any number of reads: they run in a thread."""
    found: queue.Queue[Any] = queue.Queue(maxsize=2)
    over = threading.Event()

    def put(part: Any) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                found.put(part, timeout=1)
                return

    def run() -> None:
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                put(answer)
                chunk = b"more"
                while chunk and not over.is_set():
                    chunk = answer.read1(CHUNK)
                    put(chunk)
        except Exception as error:
            put(error)

    def receive(seconds: float) -> Any:
        try:
            part = found.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(part, Exception):
            try:
                raise part
            finally:
                del part  # a circle with its traceback, which holds the connection
        return part

    threading.Thread(target=run, name="download", daemon=True).start()
    try:
        yield receive
    finally:
        over.set()


def _room(file: IO[bytes]) -> int:
    """Bytes that a download may still take of the disk."""
    state = os.fstatvfs(file.fileno())
    return state.f_bavail * state.f_frsize - RESERVE


def _total(reply: Any, start: int) -> int | None:
    length = reply.headers.get("Content-Length", "")
    return start + int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _start(reply: Any) -> int:
    found = re.match(r"bytes ([0-9]{1,18})-", reply.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


class _Redirects(urllib.request.HTTPRedirectHandler):
    """No credentials are sent to the host that a server redirects to, and the body of a
    redirection, which may have no end, is not read."""

    def http_error_302(  # type: ignore[no-untyped-def]
        self, req, fp, code, msg, headers
    ) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(  # type: ignore[no-untyped-def]
        self, req, fp, code, msg, headers, newurl
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            old, to = urlsplit(req.full_url), urlsplit(newurl)
            if to.scheme not in ("http", "https"):
                raise urllib.error.URLError(
                    f"it redirects to {newurl}, which is not an http(s) address"
                )
            if (old.scheme, to.scheme) == ("https", "http"):
                raise urllib.error.URLError(f"it redirects to {to.netloc} without encryption")
            if old.netloc != to.netloc:
                new.headers.pop("Authorization", None)
        return new


def _why(url: str, error: BaseException, done: int) -> str:
    got = f" after {size(done)}; {AGAIN}" if done else ""
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403):
            return f"{url} is refused ({error.code}): it needs a login, or terms to be accepted"
        if error.code in (404, 410):
            return f"{url} was not found ({error.code}): it was moved or renamed"
        return (
            f"the server of {url} answers {error.code} {error.reason}{got or '; try again later'}"
        )
    if isinstance(error, urllib.error.URLError):
        return f"there is no connection to {urlsplit(url).netloc}: {error.reason}{got}"
    if isinstance(error, TimeoutError):
        return f"the server of {url} is silent for {TIMEOUT:.0f} s{got or '; try again later'}"
    return f"{url}: {error or type(error).__name__}{got or '; try again later'}"


def _end(message: str, hint: str) -> str:
    return f"{message}. {hint}" if hint else message


def size(count: float) -> str:
    """`812 bytes`, `120.0 kB`, `1.2 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """The partial file, to be appended to, by one process at a time."""
    import fcntl  # here, since not every system has it

    with os.fdopen(open_own(part, os.O_APPEND), "ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"another process is fetching '{part}'; wait for it") from None
        yield file
