"""The exit codes of every command."""

from __future__ import annotations

OK, FAILED, USAGE, BUG, INTERRUPTED, NO_READER = 0, 1, 2, 70, 130, 141
