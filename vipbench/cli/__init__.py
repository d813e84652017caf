"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from vipbench.cli.exit_codes import BUG, INTERRUPTED, NO_READER, OK, USAGE
from vipbench.cli.terminal import clean_streams

LONGEST = 4_000  # characters of a line of an error


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 some cells failed, 2 usage error,
    130 interrupted, 141 broken output pipe, 70 a bug in vipbench."""
    clean_streams()
    sys.exit(_run(sys.argv[1:] if args is None else args))


def _run(args: Sequence[str]) -> int:
    import typer

    from vipbench import trust
    from vipbench.cli.app import app
    from vipbench.errors import UsageError
    from vipbench.fetching import offline

    try:
        offline.obey()
        trust.ask_here()
        status = app(args=[*args] or ["--help"], prog_name="vipbench", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else OK
    except (UsageError, trust.UntrustedCodeError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("\nvipbench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except typer.Abort:
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The parser of the arguments turns a broken pipe, and nothing else, into SystemExit.
        # Python would complain of the pipe once more while closing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return NO_READER
    except Exception as error:
        if hasattr(error, "format_message"):  # all that the parser of the arguments raises
            return _refuse(_parser_complaint(error, args))
        if _is_file_error(error):
            return _refuse(str(error))
        if isinstance(error, UnicodeEncodeError):
            return _refuse(_not_utf8(error))
        if isinstance(error, OSError):
            return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        traceback.print_exc()
        print("vipbench: this is a bug in vipbench; please report it", file=sys.stderr)
        return BUG


def _refuse(message: str) -> int:
    # A file can make one line as long as itself.
    lines = [line if len(line) <= LONGEST else f"{line[:LONGEST]}…" for line in message.split("\n")]
    print("vipbench: error:", "\n".join(lines), file=sys.stderr)
    return USAGE


def _parser_complaint(error: Any, args: Sequence[str]) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return text
    text += "" if text.endswith("?") else "."
    hint = _hint(error, context.command, args)
    return " ".join([text, *([hint] if hint else []), f"See `{context.command_path} --help`."])


def _hint(error: Any, command: Any, args: Sequence[str]) -> str:
    """A suggestion for an option or a subcommand that does not exist."""
    from difflib import get_close_matches

    flag = getattr(error, "option_name", None)
    options = [name for param in command.params for name in param.opts]
    if flag and "--set" in options and not get_close_matches(flag, options, cutoff=0.75):
        name, value = flag.lstrip("-").replace("-", "_"), _value_of(flag, args) or "VALUE"
        methods = re.findall(r"[^,\[]+(?:\[[^\]]*\])?", _value_of("--methods", args))
        method = methods[0] if len(methods) == 1 else "METHOD"
        row = f"{method[:-1]},{name}={value}]" if method[-1] == "]" else f"{method}[{name}={value}]"
        some = f", where METHOD is one of {', '.join(methods)}" if len(methods) > 1 else ""
        return (
            f"A hyperparameter is set for one method: --methods '{row}' or "
            f"--set {method.partition('[')[0]}.{name}={value}{some}."
        )
    if error.format_message().startswith("Got unexpected extra argument"):
        return "--out names the file to write." if "--out" in options else ""
    given = re.search("No such command '(.+?)'[.]?$", error.format_message())
    meant = [
        f"`{name}` ({about.rstrip('.')})"
        for name, one in getattr(command, "commands", {}).items()
        if given and not one.hidden
        if given[1].casefold() in (about := one.get_short_help_str(99)).casefold()
    ]
    return f"Similar: {', '.join(meant)}." if meant else ""


def _value_of(flag: str, args: Sequence[str]) -> str:
    """The value of a flag on the command line, or ""."""
    for place, word in enumerate(args):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and place + 1 < len(args) and not args[place + 1].startswith("--"):
            return args[place + 1]
    return ""


def _is_file_error(error: Exception) -> bool:
    """Whether its message says what is wrong with a file."""
    # Each is imported only where it must have been imported already.
    kinds = (("vipbench.results.store.lock", "StoreError"), ("vipbench.images", "ImageError"))
    modules = [(sys.modules.get(module), kind) for module, kind in kinds]
    return any(isinstance(error, getattr(m, kind)) for m, kind in modules if m is not None)


def _not_utf8(error: UnicodeEncodeError) -> str:
    """The path around the character that cannot be written."""
    text, marks = error.object, "\n'\""
    begin = max(text.rfind(mark, 0, error.start) for mark in marks) + 1
    ends = [end for mark in marks if (end := text.find(mark, error.start)) >= 0]
    path = text[begin : min(ends, default=len(text))]
    return f"'{path}' is a name that is not UTF-8; rename the file or folder"
