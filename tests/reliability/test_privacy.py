"""A run opens no connection, and nothing of the environment gets out of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.reliability import grid

# Loaded by every Python process below, the driver and its workers.
BLOCK = """
import socket, sys

def _refuse(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
        if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):
            return
        sys.stderr.write("BLOCKED " + event + "\\n")
        raise RuntimeError("BLOCKED " + event)

sys.addaudithook(_refuse)
"""
KEY = "sk-test-0123456789abcdef-do-not-print"


def test_no_connection_and_no_secret(tmp_path: Path) -> None:
    data, out = grid.write_data(tmp_path), tmp_path / "out"
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCK)
    env = {
        "PYTHONPATH": f"{tmp_path / 'site'}:{grid.REPO}",
        "OPENAI_API_KEY": KEY,
        "ANTHROPIC_API_KEY": KEY,
        "HF_TOKEN": KEY,
    }
    # One row that works and one whose failure leaves a traceback.
    (data / "plugins/bad.py").write_text(
        "import vipbench\nfrom vipbench import api\n"
        "class Bad(api.Method):\n    '''Fails.'''\n    name = 'bad'\n    kind = 'TF'\n"
        "    def forward(self, x):\n        raise RuntimeError('no')\n"
        "@vipbench.hookimpl\ndef register_methods(register):\n    register(Bad)\n"
    )
    process = grid.start(data, out, "steady[seconds=0],bad", env=env)
    status, message, err = grid.finish(process)
    assert status == 1, err
    assert "BLOCKED" not in message + err
    everything = [message, err] + [
        path.read_bytes().decode("utf-8", "replace")
        for folder in (out, data / "features")
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert not [text for text in everything if KEY in text]
    # Results travel: they hold no path of this machine.
    kept = "".join(r.model_dump_json() for r in grid.records(out) if r.ok)
    assert str(tmp_path) not in kept
    found = subprocess.run(["uname", "-n"], capture_output=True, text=True, check=True)
    assert len(found.stdout.strip()) < 4 or found.stdout.strip() not in kept
