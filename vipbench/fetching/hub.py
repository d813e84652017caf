"""Files of the Hugging Face Hub, in its own cache, so that every program finds them there.

The Hub's client begins a broken download anew; here the file itself comes through `download`, and
the client, which then finds it among the cache's blobs, does the rest.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vipbench.errors import UsageError
from vipbench.fetching import offline
from vipbench.fetching.download import FetchError, Progress, download, mismatch, quiet
from vipbench.fetching.needed import Needed


@dataclass(frozen=True)
class HubFile(Needed):
    """The first of the files `names` that `repo` (ORG/NAME) has.

    extras: further files, brought where the repository has them, and not missed where they are
    not. bring: the end of error messages: how to bring them without a connection.
    """

    repo: str
    names: tuple[str, ...]
    extras: tuple[str, ...] = ()
    licence: str = ""
    bring: str = ""

    @property
    def what(self) -> str:  # type: ignore[override]
        """The file that is there, or those that would do."""
        path = self.find()
        return f"{path.name if path else ' or '.join(self.names)} of {self.repo}"

    def find(self) -> Path | None:
        """See Needed. Raises FetchError for a name that the Hub cannot have."""
        return next((p for name in self.names if (p := _cached(self.repo, name))), None)

    def places(self) -> tuple[str, ...]:
        """See Needed."""
        from huggingface_hub import constants

        return (f"the Hugging Face cache ({constants.HF_HUB_CACHE})",)

    def damage(self) -> str:
        """See Needed. The cache names its files by their digests."""
        paths = [p for name in (*self.names, *self.extras) if (p := _cached(self.repo, name))]
        return next((f"{p.name}: {problem}" for p in paths if (problem := _damage(p))), "")

    def fetch(self, progress: Progress = quiet) -> Path:
        """See Needed."""
        for name in (*self.names, *self.extras):
            path = _cached(self.repo, name)
            if path is not None and _damage(path):
                path.resolve().unlink()
                path.unlink(missing_ok=True)
        found = self.find() or self._first(progress)
        if offline.forbidden() is not None:
            return found
        for name in self.extras:
            if _cached(self.repo, name) is None and not _known_absent(self.repo, name):
                self._bring(name, progress)
        return found

    def ensure(self) -> Path:
        """Where it lies; fetched if it is not there. Extras are not asked for again."""
        return self.find() or self.fetch()

    def _first(self, progress: Progress) -> Path:
        from huggingface_hub import constants

        wanted = " or ".join(self.names)
        tried = f"{wanted} of '{self.repo}' is not in {self.places()[0]}"
        variable = offline.forbidden()
        if variable is not None or constants.HF_HUB_OFFLINE:
            offline_variable = variable or "HF_HUB_OFFLINE"
            raise FetchError(f"{tried}, and {offline_variable} forbids downloads. {self.bring}")
        if (trouble := _unreachable(constants.ENDPOINT)) is not None:
            raise FetchError(
                f"{tried}, and there is no connection to download it: {trouble}. {self.bring}"
            )
        for name in self.names:
            if (path := self._bring(name, progress)) is not None:
                return path
        raise FetchError(f"{tried}, and {constants.ENDPOINT} has no such file there. {self.bring}")

    def _bring(self, name: str, progress: Progress) -> Path | None:
        """Bring one file; None where the repository has none of that name."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        try:
            url = hf_hub_url(self.repo, name)
            facts = get_hf_file_metadata(url)
            digest = _digest(facts.etag or "")
            if digest:
                # Its owner's name goes to the Hub alone, not to where it points.
                own = urlsplit(facts.location).netloc == urlsplit(url).netloc
                headers = {k: str(v) for k, v in build_hf_headers().items()} if own else {}
                folder = repo_folder_name(repo_id=self.repo, repo_type="model")
                blob = Path(constants.HF_HUB_CACHE) / folder / "blobs" / str(facts.etag)
                if blob.is_file() and mismatch(blob, digest):
                    blob.unlink()
                if not blob.is_file():
                    download(
                        facts.location,
                        blob,
                        digest,
                        headers=headers,
                        progress=progress,
                        hint=self.bring,
                    )
            return Path(hf_hub_download(self.repo, name))
        except FetchError:
            raise
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise self._failed(name, error) from error
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(self.repo, name)  # it notes in the cache that there is none
            return None
        except Exception as error:  # the Hub's client raises its own, its HTTP library's, OSError
            raise self._failed(name, error) from error

    def _failed(self, name: str, error: Exception) -> FetchError:
        from huggingface_hub import constants
        from huggingface_hub.errors import RepositoryNotFoundError

        reason = str(error).strip().splitlines() or [type(error).__name__]
        login = ""
        if isinstance(error, RepositoryNotFoundError):  # or one with terms to be accepted
            login = (
                f" If it has terms, accept them at huggingface.co/{self.repo}, and log in with "
                "`hf auth login`."
            )
        return FetchError(
            f"{name} of '{self.repo}' is not in {self.places()[0]}, and {constants.ENDPOINT} did "
            f"not send it: {reason[0].rstrip('.')}.{login} {self.bring}"
        )


@dataclass(frozen=True)
class HubModules(Needed):
    """The Python files of a repository whose model is built by code of its own."""

    repo: str
    licence: str = ""
    bring: str = ""

    @property
    def what(self) -> str:  # type: ignore[override]
        """In words."""
        return f"the code (*.py) of {self.repo}"

    def find(self) -> Path | None:
        """See Needed."""
        config = _cached(self.repo, "config.json")
        found = sorted(config.parent.glob("*.py")) if config is not None else []
        return found[0] if found else None

    def places(self) -> tuple[str, ...]:
        """See Needed."""
        return HubFile(self.repo, ()).places()

    def damage(self) -> str:
        """See Needed."""
        path = self.find()
        paths = [] if path is None else sorted(path.parent.glob("*.py"))
        return next((f"{p.name}: {problem}" for p in paths if (problem := _damage(p))), "")

    def fetch(self, progress: Progress = quiet) -> Path:
        """See Needed."""
        if (variable := offline.forbidden()) is not None:
            raise FetchError(f"{self.what} is missing, and {variable} forbids downloads")
        from huggingface_hub import list_repo_files

        try:
            names = [name for name in list_repo_files(self.repo) if name.endswith(".py")]
        except Exception as error:  # as above
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise FetchError(f"{self.what} cannot be fetched: {reason[0]}. {self.bring}") from error
        found = [HubFile(self.repo, (name,), bring=self.bring).fetch(progress) for name in names]
        if not found:
            raise FetchError(f"'{self.repo}' holds no code of its own; leave +remote-code out")
        return found[0]


def _cached(repo: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, name)
    except HFValidationError as error:
        raise UsageError(f"'{repo}' is not a name of the Hugging Face Hub: {error}") from error
    return Path(found) if isinstance(found, str) else None


def _known_absent(repo: str, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    found: Any = try_to_load_from_cache(repo, name)
    return found is not None and not isinstance(found, str)


def _damage(path: Path) -> str:
    return mismatch(path, _digest(path.resolve().name))


def _digest(etag: str) -> str:
    """What the Hub's ETag says of a file: the SHA-256 of a large one, git's of a small one."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return f"sha256:{etag}"
    return f"git:{etag}" if re.fullmatch(r"[0-9a-f]{40}", etag) else ""


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
