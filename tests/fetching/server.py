"""A server of the web, and as much of the Hub as its client needs, with moods."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Site:
    """files: path -> content. stop_after: bytes of a body, after which the connection breaks; what
    follows of the requests is refused as long as `down`. status: instead of a file's. ignore_range:
    every answer begins at the beginning. asked: (method, path, Range) of every request."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    stop_after: int | None = None
    down: bool = False
    status: dict[str, int] = field(default_factory=dict)
    ignore_range: bool = False
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def put(self, repo: str, **contents: bytes) -> None:
        """Files of a repository of the Hub; `__` in a name is a dot."""
        for name, content in contents.items():
            self.files[f"/{repo}/resolve/main/{name.replace('__', '.')}"] = content

    def ranges(self) -> list[str]:
        """The Range of every body that was asked for from its middle."""
        return [found for method, _, found in self.asked if method == "GET" and found]


@contextmanager
def serving() -> Iterator[Site]:
    """A site on a port of its own."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_HEAD(self) -> None:
            self.reply(body=False)

        def do_GET(self) -> None:
            self.reply(body=True)

        def reply(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            asked = self.headers.get("Range")
            site.asked.append((self.command, path, asked))
            if site.down:
                self.close_connection = True
                return
            if path in site.status:
                self.send_error(site.status[path])
                return
            content = site.files.get(path)
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0
            if asked and not site.ignore_range:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if not body:
                return
            rest = content[start:]
            if site.stop_after is not None and len(rest) > site.stop_after:
                self.wfile.write(rest[: site.stop_after])
                self.wfile.flush()
                site.down = True  # one connection breaks, and no other is taken
                self.close_connection = True
                return
            self.wfile.write(rest)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
