"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

OK, FAILED, USAGE, BUG, INTERRUPTED, NO_READER = 0, 1, 2, 70, 130, 141
