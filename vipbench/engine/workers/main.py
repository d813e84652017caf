"""The entry point of a worker process: it obeys its driver and ends with it."""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import threading
import traceback
from typing import BinaryIO

from vipbench import trust
from vipbench.engine.workers.messages import Event, Ready, Request, Untrusted, read_request, to_line
from vipbench.engine.workers.session import Session
from vipbench.fetching import offline

Requests = queue.Queue[Request]


def listen(stream: BinaryIO) -> Requests:
    """The requests that arrive on `stream`; the process ends when it does."""
    requests: Requests = queue.Queue()
    threading.Thread(target=_read, args=(stream, requests), daemon=True).start()
    return requests


def _read(stream: BinaryIO, requests: Requests) -> None:
    for line in stream:
        requests.put(read_request(line))
    # The driver is gone; whatever runs here has nobody to report to.
    os._exit(0)


def main() -> None:
    """Serve commands until standard input ends."""
    # A batch system signals every process of a job, and the driver decides what ends.
    for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    offline.obey()
    # Its driver asks so where it hangs.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=False)
    try:
        serve(listen(sys.stdin.buffer))
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        # The interpreter would wait for what a plugin has started, and for the thread that reads.
        os._exit(error.code if isinstance(error, SystemExit) and type(error.code) is int else 1)


def serve(requests: Requests) -> None:
    """Serve requests as they come; events go to what standard output was."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lock, own = threading.Lock(), os.getpid()

    def send(event: Event) -> None:
        if os.getpid() != own:
            os._exit(0)  # a copy that a plugin made by forking: its results would come twice
        with lock:
            out.write(to_line(event))
            out.flush()

    session = Session(send)
    while True:
        request = requests.get()
        trust.obey(request.code.model_dump())
        try:
            session.handle(request.command)
        except trust.UntrustedCodeError as error:
            send(Untrusted(**error.as_json()))
        send(Ready())
