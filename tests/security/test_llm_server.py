"""A server of language models that drips, floods or packs its answer costs a bounded time and
memory."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vipbench.fetching import download as downloads
from vipbench.fetching.download import FetchError, download
from vipbench.symptoms.generate.cassette import Cassette
from vipbench.symptoms.generate.client import MOST_BYTES, Client, ServerError

TIMEOUT = 0.5
Sent = list[int]
Talk = Callable[[socket.socket, Sent, threading.Event], None]


@contextmanager
def serving(talk: Talk) -> Iterator[tuple[str, Sent]]:
    """A server that answers each connection by `talk`; the address, and the bytes it got rid of."""
    sent: Sent = []
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while not over.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            talk(connection, sent, over)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", sent
    finally:
        over.set()
        listener.close()


def put(connection: socket.socket, sent: Sent, data: bytes) -> None:
    connection.sendall(data)
    sent.append(len(data))


def dripping_headers(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
    put(connection, sent, b"HTTP/1.1 200 OK\r\n")
    while not over.wait(0.1):
        put(connection, sent, b"X: y\r\n")


def dripping_error(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
    put(connection, sent, b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n")
    while not over.wait(0.1):
        put(connection, sent, b"x")


def endless(status: bytes) -> Talk:
    def talk(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
        put(connection, sent, b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not over.is_set():
            put(connection, sent, b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    return talk


def packed(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
    body = gzip.compress(bytes(1 << 24))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    put(connection, sent, head.encode() + body)


@pytest.mark.parametrize(
    ("talk", "fact"),
    [
        (dripping_headers, f"within {TIMEOUT:g} s"),
        (dripping_error, f"within {TIMEOUT:g} s"),
        (endless(b"200 OK"), "larger"),
        (endless(b"500 Oops"), "larger"),
        (packed, "larger"),
    ],
    ids=["headers drip", "an error drips", "endless", "an endless error", "packed"],
)
def test_an_exchange_has_one_clock_and_one_size(talk: Talk, fact: str) -> None:
    notes: list[str] = []
    # Who floods is refused long before.
    timeout = TIMEOUT if "within" in fact else 10 * TIMEOUT
    with serving(talk) as (url, sent):
        asking = Client(
            "toy", url, Cassette(None), timeout=timeout, waits=(0.0,), say=notes.append
        )  # fmt: skip
        start = time.monotonic()
        try:
            reply = asking.ask("anything", what="class 'x'")
            problem = reply.problem or ""
        except ServerError as error:
            problem = str(error)
        assert fact in problem
        assert fact in notes[0]
        # Two tries; far from the 75 s that reads of each byte's own clock would take.
        assert time.monotonic() - start < 2 * TIMEOUT + 8
        assert asking.requests == 2
        asking.close()
    # What the kernel's buffers held besides is little.
    assert sum(sent) < 2 * (MOST_BYTES + (16 << 20))


def test_the_command_ends_in_time(cli: Callable[..., object], tmp_path: Path) -> None:
    with serving(dripping_error) as (url, _):
        start = time.monotonic()
        done = cli(
            "symptoms", "generate", "--dataset", "synthderm", "--modality", "images",
            "--base-url", url, "--model", "m",
            "--timeout", "1", "--max-requests", "2", "-o", tmp_path / "s.json",
        )  # fmt: skip
        assert done.returncode == 2  # type: ignore[attr-defined]
        assert time.monotonic() - start < 60


def test_a_download_follows_to_the_web_alone(tmp_path: Path) -> None:
    def elsewhere(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
        head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "
        put(connection, sent, head + f"ftp://127.0.0.1:{port}/x\r\n\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as ftp, serving(elsewhere) as (url, _):
        port = ftp.getsockname()[1]
        ftp.settimeout(0)
        with pytest.raises(FetchError, match="address"):
            download(f"{url}/x", tmp_path / "x", "")
        with pytest.raises(BlockingIOError):
            ftp.accept()


def drips(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
    put(connection, sent, b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    while not over.wait(0.1):
        put(connection, sent, b"x")


def lies(length: object) -> Talk:
    def talk(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
        put(connection, sent, f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode())
        while not over.is_set():
            put(connection, sent, bytes(1 << 16))

    return talk


def dripping_length(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
    """The length of a chunk, in a line that does not end."""
    put(connection, sent, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    while not over.wait(0.1):
        put(connection, sent, b"x")


def endless_trailers(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
    put(connection, sent, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    while not over.is_set():
        put(connection, sent, b"X: y\r\n" * 1000)


def endless_redirection(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
    put(connection, sent, b"HTTP/1.1 302 Found\r\nLocation: /y\r\n\r\n")
    while not over.is_set() and sum(sent) < 1 << 28:
        put(connection, sent, bytes(1 << 16))


def no_address(connection: socket.socket, sent: Sent, over: threading.Event) -> None:
    put(connection, sent, b"HTTP/1.1 302 Found\r\nLocation: http://[x/\r\n\r\n")


@pytest.mark.parametrize(
    ("talk", "fact"),
    [
        (dripping_headers, "silent"),
        (dripping_length, "silent"),
        (endless_trailers, "silent"),
        (endless_redirection, "infinite loop"),
        (no_address, "Invalid"),
        (drips, "silent"),
        (endless(b"200 OK"), "length"),
        (lies(10**15), "room"),
        (lies("9" * 5000), "length"),
        (lies(1 << 20), "expected"),
    ],
    ids=[
        "headers drip",
        "a length drips",
        "trailers",
        "a redirection",
        "no address",
        "the body drips",
        "endless",
        "huge",
        "no number",
        "short",
    ],
)
def test_a_download_is_bounded(
    talk: Talk, fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.5)
    monkeypatch.setattr(downloads, "MOST_UNKNOWN", 1 << 24)
    start = time.monotonic()
    with serving(talk) as (url, sent), pytest.raises(FetchError, match=fact):
        download(f"{url}/x", tmp_path / "x", f"sha256:{'0' * 64}")
    assert time.monotonic() - start < 20
    if talk is endless_redirection:
        assert sum(sent) < 1 << 28  # its body was not read
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 12
