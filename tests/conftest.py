"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import warm
from vipbench import trust

# Before anything imports torch: tests share the machine, also with their own worker processes,
# and threads that wait for each other on a busy core take twenty times as long.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# Each process that a test starts imports vipbench: it is compiled once, also where the environment
# keeps Python from writing beside the sources.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A million objects of libraries live as long as the tests: looking through them at each collection
# takes up to a tenth of the time.
gc.set_threshold(50_000, 20, 100)

# Tests load plugins that they wrote; processes that they start are asked, as a user is.
trust.allow_everything()
warm.install()

settings.register_profile("ci", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")

REPO = Path(__file__).resolve().parents[1]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds what the user trusts, in the place of the developer's own."""
    folder = tmp_path_factory.mktemp("config")
    os.environ["VIPBENCH_CONFIG"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the clone."""
    return REPO


# Files that take minutes: at the end the other processes would wait for them.
_FIRST = ("/cluster/test_slurm", "/test_testing", "/test_ready", "/test_method_contract")
# What the tests of a process hold after a while, in bytes.
_HELD = 3 << 30


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores, as far as the memory goes: a third of the time, tests wait for
    processes and servers."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min((os.cpu_count() or 1) + 2, memory // _HELD))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; each file's tests stay in their order."""

    def place(item: pytest.Item) -> int:
        return next((at for at, name in enumerate(_FIRST) if name in item.nodeid), len(_FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the clone, or VIPBENCH_TEST_SHARED, with recorded figures and
    data; skips without it."""
    folder = Path(os.environ.get("VIPBENCH_TEST_SHARED", REPO.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: recorded figures are not at hand")
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, config: Path) -> dict[str, str]:
    """The environment of processes that a test starts."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("VIPBENCH_")}
    path = os.pathsep.join(p for p in (str(REPO), mine.get("PYTHONPATH")) if p)
    # A wide, plain terminal: messages are compared as text.
    mine |= {"PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    mine |= {"VIPBENCH_CACHE": str(tmp_path_factory.getbasetemp() / "features")}
    return mine | {"VIPBENCH_CONFIG": str(config)}


@pytest.fixture
def cli(tmp_path: Path, environment: dict[str, str]) -> Cli:
    """`cli("list", "methods", env={...}, timeout=60, cwd=...)`: the command line in a process of
    its own, started in an empty folder; returns status, stdout and stderr. The features of one
    test session are encoded once."""
    home = tmp_path / "cli"
    home.mkdir()

    def call(
        *args: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vipbench", *map(os.fspath, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd or home,
            env=environment | dict(env or {}),
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return call
