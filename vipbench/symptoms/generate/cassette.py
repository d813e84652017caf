"""Recorded replies, so that a generation can be replayed without a server, bit by bit.

A JSON file: request hash -> request (images as SHA-256, never pixels) and reply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.errors import UsageError

FORMAT = "vipbench-cassette"
MAX_BYTES = 64 * 1024 * 1024


def request_hash(request: Mapping[str, Any]) -> str:
    """What a reply is filed under: everything that is asked, but not of which host."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Cassette:
    """The replies of `path`; without a path they are kept in memory. Raises UsageError for a file
    that is none."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.recorded = datetime.now(UTC).date().isoformat()
        self.entries: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT or document["version"] != 1:
                raise ValueError("it is of another format")
            self.recorded = str(document["recorded"])
            for key, entry in document["entries"].items():
                if request_hash(entry["request"]) != key or not isinstance(entry["reply"], str):
                    raise ValueError(f"entry {key[:12]} was altered")
                self.entries[key] = entry
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"cassette '{path}' cannot be used: {error or type(error).__name__}; expected one "
                "that `vipbench symptoms generate --cassette` wrote"
            ) from None

    def get(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The entry of a request, or None."""
        return self.entries.get(request_hash(request))

    def put(self, request: Mapping[str, Any], reply: str, tokens: int) -> None:
        """Keep a reply, on the disk on return."""
        entry = {"request": dict(request), "reply": reply, "tokens": tokens}
        self.entries[request_hash(request)] = entry
        if self.path is None:
            return
        document = {"format": FORMAT, "version": 1, "recorded": self.recorded}
        document["entries"] = dict(sorted(self.entries.items()))
        files.write(self.path, json.dumps(document, indent=1) + "\n")
