"""Python processes that begin with the libraries already imported.

Most tests of the command line start `python -m vipbench`, which starts workers; importing torch and
transformers takes each of these seconds, a hundred times what the test is about. `install` makes
`subprocess` start such processes as forks of a server that has imported the libraries and nothing
of vipbench. Each is a process of its own, a child of the one that asked for it, with its own
environment, working directory, streams, signal handlers and modules of vipbench.

Scripts (`python FILE.py`, `python -`) and processes of multiprocessing's "spawn" start warm, too.
What a new interpreter alone shows gets one (see `_kind`): another hash seed, start-up files,
variables that libraries read when they are imported. `VIPBENCH_TEST_COLD=1` gives one to all.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import process as mp_process
from multiprocessing import resource_tracker
from multiprocessing import util as mp_util
from pathlib import Path
from typing import Any, NoReturn

REPO = Path(__file__).resolve().parents[1]
Cold = subprocess.Popen
COLD = "VIPBENCH_TEST_COLD"
WARM = "VIPBENCH_TEST_WARM"  # in the environment of a `python -c` that uses vipbench
# Libraries read these when they are imported, the interpreter when it starts.
_READ_EARLY = (
    *("PYTHON", "LC_", "LANG", "TRANSFORMERS_", "TORCH", "PYTORCH", "CUDA"),
    *("OMP_NUM", "MKL_", "OPENBLAS", "MPL", "LD_"),
)
_OFFLINE = ("VIPBENCH_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_MOST_SERVERS = 2
_servers: dict[str, tuple[socket.socket, subprocess.Popen[bytes]]] = {}
_wanted: dict[str, int] = {}
_added: list[str] = []  # in a warm process: the folders of its PYTHONPATH
_own: str | None = None  # in a warm process: the early variables that its libraries were read with


def listen() -> None:
    """For `preexec_fn`: who runs the tests in the background has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def install() -> None:
    """From now on `subprocess` of this process starts vipbench warm."""
    if os.environ.get(COLD) or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    _replace()


def _replace() -> None:
    subprocess.Popen = Warm  # type: ignore[misc]
    mp_util.spawnv_passfds = _spawn  # type: ignore[attr-defined]


def _early(env: Mapping[str, str]) -> str:
    """Of an environment, what cannot change once the libraries are imported."""
    # PyTorch sets the last one itself, some time.
    apart = ("PYTHONPATH", *_OFFLINE, "TORCHINDUCTOR_CACHE_DIR")
    found = {k: v for k, v in env.items() if k.startswith(_READ_EARLY) and k not in apart}
    return json.dumps(found, sort_keys=True)


def _kind(args: Any, env: Mapping[str, str]) -> list[str] | None:
    """The arguments of a Python that may start warm, None where it may not."""
    if not isinstance(args, list | tuple) or len(args) < 2 or os.fspath(args[0]) != sys.executable:
        return None
    words = [os.fsdecode(arg) for arg in args[1:]]
    plain = words[1:] if words[0] == "-P" else words
    worker = words[:2] == ["-P", "-c"] and len(words) == 3 and "vipbench.engine" in words[2]
    program = plain[0] == "-m" and plain[1].partition(".")[0] in ("vipbench", "benchmarks")
    script = words == ["-"] or words[0].endswith(".py") or (words[0] == "-c" and WARM in env)
    if not (worker or program or script):
        return None
    if env.get(COLD):
        return None
    first, *more = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p] or [""]
    early = [Path(p, f"{name}customize.py") for p in more for name in ("site", "user")]
    return words if first == str(REPO) and not any(file.exists() for file in early) else None


class Warm(Cold):  # type: ignore[type-arg]
    """`Popen` that forks what it can."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any,
                       pass_fds: Any, cwd: Any, env: Any, *more: Any) -> None:  # fmt: skip
        given_env = os.environ if env is None else env
        environ = {os.fsdecode(k): os.fsdecode(v) for k, v in given_env.items()}
        words = None
        if preexec_fn in (None, listen) and not pass_fds and executable is None:
            words = _kind(args, environ)
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = more[3:9]
        session = more[14]
        start = None if words is None else _starter(environ)
        if start is None:
            super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more
            )
            return
        request = {
            "words": words,
            "env": environ,
            "cwd": os.path.abspath(os.fsdecode(cwd or ".")),  # noqa: PTH100 - resolves no link
            "session": bool(session),
        }
        given = (p2cread, c2pwrite, errwrite)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self.pid = start(request, [fd if fd != -1 else i for i, fd in enumerate(given)])
        self._child_created = True
        for mine, theirs in ((p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread)):
            if theirs != -1:  # else the caller's own
                os.close(mine)
        devnull = getattr(self, "_devnull", None)
        if devnull is not None:
            os.close(devnull)


_cold_spawn = mp_util.spawnv_passfds  # type: ignore[attr-defined]


def _spawn(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """`multiprocessing.util.spawnv_passfds` that forks what it can."""
    words = [os.fsdecode(arg) for arg in args]
    start = None
    spawn = "-c" in words and "spawn_main" in words[words.index("-c") + 1]
    # A worker that starts decoders computes; what its threads hold locked a fork would never get.
    if spawn and _own is None and not os.environ.get(COLD):
        start = _starter(os.environ)
    if start is None:
        return int(_cold_spawn(path, args, passfds))
    keep = sorted({fd for fd in passfds if fd > 2})
    request = {
        "words": words[words.index("-c") :],
        "env": dict(os.environ),
        "cwd": os.getcwd(),  # noqa: PTH109 - as a child inherits it
        "session": False,
        "keep": keep,
        "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    }
    return start(request, [0, 1, 2, *keep])


Start = Callable[[dict[str, Any], Sequence[int]], int]


def _starter(env: Mapping[str, str]) -> Start | None:
    early = _early(env)
    if _own is not None:
        # A child lacks the threads of its parent, and what they hold locked stays so. Python frees
        # its own locks, and processes of vipbench that start others compute nothing.
        return _fork if early == _own else None
    _wanted[early] = _wanted.get(early, 0) + 1
    # A server takes as long to start as three processes.
    if early not in _servers and early != _early(os.environ) and _wanted[early] < 4:
        return None
    if early not in _servers:
        if len(_servers) >= _MOST_SERVERS:
            _end(next(iter(_servers)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        process = Cold(
            [sys.executable, __file__, str(theirs.fileno())],
            env={**json.loads(early), "PYTHONPATH": str(REPO), "PATH": os.environ.get("PATH", "")},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        _servers[early] = ours, process
        atexit.register(_end, early)
    server = _servers[early][0]

    def ask(request: dict[str, Any], fds: Sequence[int]) -> int:
        socket.send_fds(server, [json.dumps(request).encode()], fds)
        return int(server.recv(64))

    return ask


def _end(early: str) -> None:
    """A server ends when nobody can ask it any more."""
    if early in _servers:
        link, process = _servers.pop(early)
        link.close()
        process.wait(10)


def serve(link: socket.socket) -> NoReturn:
    """Fork a process for each request, which becomes a child of who asked."""
    paths = [p for p in sys.path if p not in (str(REPO), str(Path(__file__).parent))]
    _import_libraries()
    _import_vipbench()
    gc.collect()
    gc.freeze()
    while True:
        data, fds, _, _ = socket.recv_fds(link, 1 << 20, 16)
        if not data:
            os._exit(0)
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            # Ends at once, so that its child is handed to the nearest subreaper.
            pid = os.fork()
            if pid == 0:
                _become({**json.loads(data), "fresh": True}, fds, paths)
            os.write(write, str(pid).encode())
            os._exit(0)
        for fd in (*fds, write):
            os.close(fd)
        os.waitpid(between, 0)
        link.send(os.read(read, 64))
        os.close(read)


def _import_libraries() -> None:
    """What vipbench imports, by importing vipbench and forgetting its modules."""
    for name in (
        *("engine.workers.session", "backbones.loading.tiny_clip", "cli.app", "results"),
        *("backbones.open_clip", "cli.commands.run", "engine.progress", "datasets"),
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"vipbench.{name}")
    # What vipbench imports where it is used.
    for name in ("open_clip", "timm", "transformers", "scipy.stats", "sklearn.linear_model"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from vipbench.plugins.registry import load_registry

    load_registry(None)
    _forget()


def _import_vipbench() -> None:
    """All of vipbench, as it is when it was imported and nothing was called."""
    import vipbench

    for module in pkgutil.walk_packages(vipbench.__path__, "vipbench."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def _forget() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "vipbench"]:
        del sys.modules[name]


def _set_hub(offline: bool) -> None:
    """Give modules that have constants of the Hub's library those of this environment. offline:
    whether vipbench is about to set the library offline, as it does before it is imported."""
    constants = importlib.import_module("huggingface_hub.constants")
    before = dict(vars(constants))
    given = dict(os.environ)
    os.environ.update(dict.fromkeys(_OFFLINE[1:], "1") if offline else {})
    changed = {
        name: value
        for name, value in vars(importlib.reload(constants)).items()
        if name.isupper() and before.get(name) != value and type(value) in (bool, str)
    }
    os.environ.clear()
    os.environ.update(given)
    for module in [m for m in sys.modules.values() if m is not constants and changed]:
        for name, value in changed.items():
            if name in vars(module) and vars(module)[name] == before.get(name):
                setattr(module, name, value)


def _fork(request: dict[str, Any], fds: Sequence[int]) -> int:
    """In a warm process: a child of it that has none of its state."""
    gc.collect()
    pid = os.fork()
    if pid == 0:
        gc.freeze()
        _become(request, fds, [p for p in sys.path if p not in (str(REPO), str(Path.cwd()))])
    return pid


def _become(request: dict[str, Any], fds: Sequence[int], paths: list[str]) -> NoReturn:
    """Be the Python that was asked for, to its end."""
    global _own
    status = 1
    try:
        numbers = [0, 1, 2, *request.get("keep", ())]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, numbers[-1] + 100) for fd in fds]
        for number, fd in zip(numbers, high, strict=True):
            os.dup2(fd, number)
        ends = [*numbers[3:], min(os.sysconf("SC_OPEN_MAX"), 1 << 20)]
        for before, after in zip(numbers[2:], ends, strict=True):
            os.closerange(before + 1, after)
        if request["session"]:
            os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, request.get("blocked", ()))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # What would be done at the end of the process that was forked is not this one's.
        atexit._clear()
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]
        mp_process._children.clear()  # type: ignore[attr-defined]
        mp_util._finalizer_registry.clear()  # type: ignore[attr-defined]
        resource_tracker._resource_tracker.__init__()  # type: ignore[attr-defined, misc]
        atexit.register(mp_util._exit_function)  # type: ignore[attr-defined]
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        _own = _early(os.environ)
        plain = bool(os.environ.get("PYTHONUNBUFFERED"))
        kept = {"encoding": sys.__stdout__.encoding if sys.__stdout__ else "utf-8"}
        for name, number, mode in (("stdin", 0, "rb"), ("stdout", 1, "wb"), ("stderr", 2, "wb")):
            errors = "backslashreplace" if number == 2 else "strict"
            raw = open(number, mode, buffering=-1, closefd=False)  # noqa: SIM115 - the stream of the process
            line = number == 2 or (number == 1 and raw.isatty())
            stream = io.TextIOWrapper(
                raw, errors=errors, line_buffering=line, write_through=plain and number > 0, **kept
            )
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        if not request.get("fresh"):
            _forget()
        _set_hub("--offline" in request["words"] or bool(os.environ.get("VIPBENCH_OFFLINE")))
        _replace()
        given = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        sys.path[:] = [*dict.fromkeys([*given, *(p for p in paths if p not in _added)])]
        _added[:] = given
        sys.path_importer_cache.clear()
        importlib.invalidate_caches()
        status = _status(request["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
        except BaseException:
            status = 120
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


def _status(words: list[str]) -> int:
    """Runs the program; the exit status that Python gives."""
    try:
        sys.orig_argv = [sys.executable, *words]
        if words[0] == "-P":
            words = words[1:]
        else:
            script = Path(words[0]).resolve().parent if words[0].endswith(".py") else ""
            sys.path.insert(0, os.getcwd() if words[0] == "-m" else str(script))  # noqa: PTH109 - the program compares this text
        if words[0] == "-m":
            sys.argv = ["-m", *words[2:]]
            if (package := sys.modules.get(words[1])) is not None:
                importlib.reload(package)  # it looks at how it was started
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            return 0
        sys.argv = words if words[0] != "-c" else ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__dict__["__builtins__"] = builtins
        if words[0] == "-c":
            source, name = words[1], "<string>"
        elif words[0] == "-":
            source, name = sys.stdin.read(), "<stdin>"
        else:
            name = main.__file__ = str(Path(words[0]).absolute())
            source = Path(name).read_text(encoding="utf-8")
        exec(compile(source, name, "exec", dont_inherit=True), vars(main))
    except SystemExit as end:
        if isinstance(end.code, int) or end.code is None:
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.modules["tests.warm"] = sys.modules["__main__"]
    serve(socket.socket(fileno=int(sys.argv[1])))
