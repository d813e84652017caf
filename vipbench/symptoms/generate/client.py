"""Asking a language model: any server that speaks OpenAI's chat protocol.

The host is always the user's: there is no default one, redirects are not followed, and a proxy of
the environment is not asked for addresses of this machine. The key comes from the environment.
"""

from __future__ import annotations

import ipaddress
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from vipbench.errors import UsageError
from vipbench.symptoms.generate.cassette import Cassette
from vipbench.symptoms.generate.grids import pixel_hash
from vipbench.text import png_url

KEY_VARIABLES = ("VIPBENCH_LLM_KEY", "OPENAI_API_KEY")
MOST_BYTES = 256 * 1024  # of a reply
WAITS = (1.0, 4.0, 15.0)  # seconds before each further try
MOST_WAIT = 30.0


class ServerError(UsageError):
    """The server gave no usable reply, after all tries."""


@dataclass(frozen=True)
class Reply:
    """text: the model's answer, "" where there is nothing to use. problem: why not, or None."""

    text: str
    problem: str | None = None


@dataclass
class Client:
    """One model on one server, behind a cassette.

    base_url: None replays the cassette alone. timeout: seconds a request may take in all.
    max_requests: HTTP requests of this run, tries included. waits: seconds before further tries.
    """

    model: str
    base_url: str | None
    cassette: Cassette
    timeout: float = 120.0
    max_requests: int = 100
    temperature: float | None = None
    waits: Sequence[float] = WAITS
    say: Callable[[str], None] = lambda line: None
    requests: int = 0
    tokens: int = 0
    replayed: int = 0
    _client: Any = field(default=None, repr=False)

    def ask(self, prompt: str, images: Sequence[bytes] = (), what: str = "") -> Reply:
        """The model's reply to `prompt` with PNG images. Raises ServerError, UsageError."""
        request: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "images": [pixel_hash(image) for image in images],
        }
        if self.temperature is not None:
            request["temperature"] = self.temperature
        kept = self.cassette.get(request)
        if kept is not None:
            self.replayed += 1
            return Reply(kept["reply"])
        if self.base_url is None:
            raise UsageError(
                f"the cassette holds no reply for {what or 'this request'}; give --base-url to ask "
                "a server, or the prompts, model and images with which it was recorded"
            )
        content: Any = prompt
        if images:
            content = [{"type": "text", "text": prompt}]
            content += [{"type": "image_url", "image_url": {"url": png_url(i)}} for i in images]
        problem, where = "", f"{what}, {address(self.base_url)}"
        for wait in [*self.waits, None]:
            self._spend(what)
            text, tokens, problem, again, asked_wait = self._once(content)
            self.tokens += tokens
            if not problem:
                self.cassette.put(request, text, tokens)
                return Reply(text)
            if not again:
                raise ServerError(f"{where}: {problem}")
            if wait is not None:
                self.say(f"{where}: {problem}; trying again")
                time.sleep(min(max(wait, asked_wait), MOST_WAIT))
        if problem.startswith("the reply"):
            return Reply("", problem)
        raise ServerError(
            f"{where}: {problem}, {len(self.waits) + 1} times; with --cassette, replies received "
            f"so far are kept and not requested again"
        )

    def _spend(self, what: str) -> None:
        if self.requests >= self.max_requests:
            raise UsageError(
                f"{what}: the budget of {self.max_requests} requests is spent; --max-requests "
                "raises it, with --cassette, replies received so far are not requested again"
            )
        self.requests += 1

    def _once(self, content: Any) -> tuple[str, int, str, bool, float]:
        """Text, tokens, problem, whether to try again, and how long the server asks to wait.

        The HTTP library's timeouts are for each read alone, so that a server that sends a byte now
        and then is waited for without end: the exchange runs in a thread, under one clock.
        """
        if self._client is None:
            self._client = self._connect(_library())
        found: queue.SimpleQueue[tuple[str, int, str, bool, float]] = queue.SimpleQueue()
        threading.Thread(
            target=lambda: found.put(self._exchange(content)), name="llm", daemon=True
        ).start()
        try:
            return found.get(timeout=self.timeout)
        except queue.Empty:
            self.close()  # the thread's next read fails
            return "", 0, f"no whole reply within {self.timeout:g} s", True, 0

    def _exchange(self, content: Any) -> tuple[str, int, str, bool, float]:
        """See `_once`."""
        openai = _library()
        options = {} if self.temperature is None else {"temperature": self.temperature}
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                extra_headers={"Accept-Encoding": "identity"},
                **options,
            ) as response:
                return _content(b"".join(response.iter_bytes()))
        except openai.APIStatusError as error:
            status = error.status_code
            again = status in (408, 409, 429) or status >= 500
            return "", 0, f"the server answered {status}", again, _retry_after(error)
        except openai.APITimeoutError:
            return "", 0, f"no reply within {self.timeout:g} s", True, 0
        except Exception as error:  # the HTTP library's own errors while a body is read
            if isinstance(error, _TooLargeError) or isinstance(error.__cause__, _TooLargeError):
                return "", 0, f"the reply is larger than {MOST_BYTES >> 10} KiB", True, 0
            why = f": {cause}" if (cause := error.__cause__) is not None and str(cause) else ""
            return "", 0, f"the connection failed ({type(error).__name__}{why})", True, 0

    def _connect(self, openai: Any) -> Any:
        assert self.base_url is not None
        key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "none")
        http = openai.DefaultHttpxClient(
            follow_redirects=False,
            trust_env=not is_loopback(host_of(self.base_url)),
            event_hooks={"response": [_limit]},
        )
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=key,
            timeout=self.timeout,
            max_retries=0,
            http_client=http,
        )

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


class _TooLargeError(Exception):
    """A body of more than MOST_BYTES, or one that only shows its size when it is unpacked."""


def _limit(response: Any) -> None:
    """Bound the body of every response, of an error's too, which the library reads whole."""
    # Which HTTP library it is depends on the client's version.
    library = import_module(type(response).__module__.partition(".")[0])

    class Limited(library.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            left = MOST_BYTES
            for chunk in self._stream:
                left -= len(chunk)
                if left < 0:
                    raise _TooLargeError
                yield chunk

        def close(self) -> None:
            self._stream.close()

    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _TooLargeError
    response.stream = Limited(response.stream)


def host_of(base_url: str) -> str:
    """The host of a base URL. Raises UsageError where it is none."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise UsageError(
            f"--base-url takes an address such as http://127.0.0.1:8000/v1, got '{base_url}'"
        )
    return host


def address(base_url: str) -> str:
    """A base URL as messages name it: without user, password and query."""
    parts = urlsplit(base_url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, by its name or number alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _content(data: bytes) -> tuple[str, int, str, bool, float]:
    try:
        document = json.loads(data)
        text = document["choices"][0]["message"]["content"]
        usage = document.get("usage") or {}
        total = usage.get("total_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "", 0, "the reply is not JSON of the chat protocol", True, 0
    tokens = total if type(total) is int and total > 0 else 0
    if not isinstance(text, str) or not text.strip():
        return "", tokens, "the reply is empty", True, 0
    # What cannot be written as UTF-8 could not be kept either.
    return text.encode("utf-8", "replace").decode(), tokens, "", False, 0


def _retry_after(error: Any) -> float:
    try:
        return max(0.0, float(error.response.headers.get("retry-after", 0)))
    except (TypeError, ValueError):
        return 0.0


def _library() -> Any:
    try:
        import openai
    except ImportError:
        raise UsageError(
            "asking a language model needs the package openai: pip install 'vipbench[llm]'"
        ) from None
    return openai
