"""Files of the Hugging Face Hub: from the local cache if they are there, else fetched."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vipbench.errors import UsageError


def fetch(repo: str, names: tuple[str, ...], bring: str) -> Path:
    """The first of the files `names` that `repo` (ORG/NAME) has.

    bring: the end of the error message: how to bring the weights without a connection.
    Raises UsageError saying what was tried.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        for name in names:
            cached = try_to_load_from_cache(repo, name)
            if isinstance(cached, str):
                return Path(cached)
    except HFValidationError as error:
        raise UsageError(f"'{repo}' is not a name of the Hugging Face Hub: {error}") from error
    wanted = " or ".join(names)
    tried = f"{wanted} of '{repo}' is not in the Hugging Face cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"{tried}, and HF_HUB_OFFLINE forbids to fetch it. {bring}")
    if (trouble := _unreachable(constants.ENDPOINT)) is not None:
        raise UsageError(f"{tried}, and there is no connection to fetch it: {trouble}. {bring}")
    for name in names:
        try:
            return Path(hf_hub_download(repo, name))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the Hub's client raises its own, its HTTP library's, OSError
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(
                f"{tried}, and {constants.ENDPOINT} did not give it: {reason[0]}. {bring}"
            ) from error
    raise UsageError(f"{tried}, and {constants.ENDPOINT} has no such file there. {bring}")


def _unreachable(endpoint: str) -> str | None:
    """Why `endpoint` cannot be connected to; None if it can. The Hub's own client would try for
    the better part of a minute before it says so."""
    url = urlsplit(endpoint)
    proxy = getproxies().get(url.scheme)
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", "10"))
        socket.create_connection((url.hostname or "", port), timeout=seconds).close()
    except (OSError, ValueError) as error:
        return f"{url.hostname}:{port}: {error}"
    return None
