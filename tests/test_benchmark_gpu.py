"""`python -m benchmarks.gpu` on the CPU: lines, limits, and parts that fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import worker
from benchmarks.gpu.__main__ import LIMITS

Lines = Iterator[dict[str, Any]]


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_two_parts(tmp_path: Path, repo: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick",
               "--out", str(tmp_path), "--parts", "machine,memory"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=repo, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "results.jsonl"]
    first, *rest = read(tmp_path)
    assert (first["part"], first["status"], first["device"]) == ("machine", "ok", "cpu")
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(first["products_tflops"]) == {"fp32", "tf32", "bf16"}
    assert all(rate > 0 for rate in first["products_tflops"].values())
    assert [line.get("method") for line in rest] == ["coop", "vip", None]
    assert all(line["estimate_bytes"] > 1e6 for line in rest[:2])
    assert rest[2]["status"] == "skipped: no CUDA"


def test_a_device_of_cuda_has_its_number() -> None:
    # Without it `torch.cuda.set_device` raises.
    found = [worker.device_of(name) for name in ("cuda", "cuda:1", "cpu")]
    assert found == [torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")]


def test_what_is_no_part_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gpu.__main__ import main

    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--parts", "machine,speed"])
    output = capfd.readouterr().err
    assert all(name in output for name in ("speed", *LIMITS))


def test_what_runs_the_parts_ends_with_the_process_that_watches_it(repo: Path) -> None:
    code = (
        "from benchmarks.gpu.__main__ import end_with_watcher as end; end();"
        "import time; print(1, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=repo, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline()
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(timeout=30) == -signal.SIGKILL


def wrong(bench: worker.Bench) -> Lines:
    yield {"what": "before"}
    raise ValueError("seven")


def deaf(bench: worker.Bench) -> Lines:
    yield {"what": "before"}
    with suppress(BaseException):  # as a callback of a library
        time.sleep(30)
    time.sleep(30)


def slow(bench: worker.Bench) -> Lines:
    yield {"what": "before"}
    time.sleep(30)
    yield {"what": "after"}


def on_cuda(bench: worker.Bench) -> Lines:
    raise worker.NoCudaError
    yield {}


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [(wrong, "failed", "ValueError: seven"), (slow, "timed out", "limit"),
     (deaf, "timed out", "limit"),
     (on_cuda, "skipped: no CUDA", "")],
)  # fmt: skip
def test_a_part_that_ends_early_is_a_line(
    part: Callable[..., Lines], status: str, words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(worker, "part", lambda name: part)
    monkeypatch.setattr(worker, "AGAIN", 0.2)
    bench = worker.Bench(torch.device("cpu"), True, tmp_path, tmp_path, 0.0)
    worker.run_part(bench, "machine", 0.2)
    *before, last = read(tmp_path)
    assert [line["what"] for line in before] == ["before"] * (part is not on_cuda)
    assert last["status"] == status
    assert words in last.get("error", "")
    assert last["seconds"] < 5
