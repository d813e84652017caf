"""A small OpenAI-compatible server on 127.0.0.1, and what it may answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answer:
    """content: what the model says. status: of HTTP. raw: the whole body instead. cut: close the
    connection in the middle. sleep: seconds before the body. to: redirect there."""

    def __init__(
        self, content: Any = "", status: int = 200, raw: bytes | None = None, cut: bool = False,
        sleep: float = 0.0, to: str | None = None,
    ) -> None:  # fmt: skip
        self.content, self.status, self.raw, self.cut = content, status, raw, cut
        self.sleep, self.to = sleep, to


class Server:
    """`answer(body)` -> Answer; `asked`: the bodies that arrived; `headers`: theirs."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


def prompt_of(body: dict[str, Any]) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[0]["text"]


@contextmanager
def serve(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[Server]:
    state = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.asked.append(body)
            state.headers.append(dict(self.headers))
            output = state.answer(body)
            time.sleep(output.sleep)
            reply = {"choices": [{"message": {"role": "assistant", "content": output.content}}]}
            data = json.dumps({**reply, "usage": {"total_tokens": 7}}).encode()
            data = data if output.raw is None else output.raw
            self.send_response(output.status)
            if output.to:
                self.send_header("Location", output.to)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            try:
                self.wfile.write(data[: len(data) // 2] if output.cut else data)
                if output.cut:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client went away, which is what some tests want

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    try:
        yield state
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
