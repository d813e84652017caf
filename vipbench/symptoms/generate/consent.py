"""Before images leave the machine: what the user is shown, and what must be typed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vipbench.errors import UsageError
from vipbench.symptoms.generate.client import host_of, is_loopback


@dataclass(frozen=True)
class Sending:
    """What would be sent where."""

    base_url: str
    model: str
    images: int
    dataset: str
    licence: str
    sharing: str
    grids: Path


def consent(
    sending: Sending,
    given: str | None,
    ask: Callable[[str], str] | None,
    say: Callable[[str], None],
) -> None:
    """Return where images may be sent; raise UsageError where not.

    A server on this machine needs no consent. given: `--consent`. ask: reads a line from the
    user; None where nobody is there to answer.
    """
    host = host_of(sending.base_url)
    if is_loopback(host):
        return
    if sending.sharing != "allowed":
        raise UsageError(
            f"images of '{sending.dataset}' may not be sent to {host}: its licence "
            f"({sending.licence}) keeps them local. Leave --send-images out, or use a server on "
            "this machine (127.0.0.1)"
        )
    for line in (
        f"Images are about to leave this machine for {host}:",
        f"  model    {sending.model}",
        f"  images   {sending.images} of '{sending.dataset}', as the grids in {sending.grids}",
        f"  licence  {sending.licence}",
        "  Files' metadata are stripped. Words burned into the images (names, dates) are NOT:",
        "  look at the grids first.",
        *(["  The connection is not encrypted."] if sending.base_url.startswith("http:") else []),
    ):
        say(line)
    if given is None and ask is not None:
        given = ask(f"Type the host to send them ({host}): ")
    if given is None or given.strip() != host:
        raise UsageError(
            f"nothing was sent: sending images to {host} needs its name typed as confirmation, or "
            f"--consent {host}"
        )
