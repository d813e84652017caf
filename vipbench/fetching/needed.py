"""What must lie on the disk before data or a model can be used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from vipbench.fetching.download import Progress, download, mismatch, quiet


class Needed(ABC):
    """One file, or some that go together.

    what: what it is called in messages. licence: of what is in it, shown before it is fetched.
    """

    what: str
    licence: str = ""

    @abstractmethod
    def find(self) -> Path | None:
        """Where it lies, None where it does not."""

    @abstractmethod
    def places(self) -> tuple[str, ...]:
        """Where it is looked for."""

    @abstractmethod
    def damage(self) -> str:
        """What is wrong with what lies there, by its digest; "" where nothing is, or where no
        digest is known."""

    @abstractmethod
    def fetch(self, progress: Progress = quiet) -> Path:
        """Bring it; what lies there already and is not damaged is left. Raises FetchError."""


@dataclass(frozen=True)
class WebFile(Needed):
    """A file of the web.

    url: where it is. path: where it belongs. digest: `md5:…` or `sha256:…`. elsewhere: other
    paths under which it may lie. hint: what else a user can do, for messages.
    """

    url: str
    path: Path
    digest: str
    licence: str = ""
    elsewhere: tuple[Path, ...] = ()
    hint: str = ""

    @property
    def what(self) -> str:  # type: ignore[override]
        """The file's name."""
        return self.path.name

    def find(self) -> Path | None:
        """See Needed."""
        return next((p for p in (self.path, *self.elsewhere) if p.is_file()), None)

    def places(self) -> tuple[str, ...]:
        """See Needed."""
        return tuple(str(path) for path in (self.path, *self.elsewhere))

    def damage(self) -> str:
        """See Needed."""
        path = self.find()
        return "" if path is None else mismatch(path, self.digest)

    def fetch(self, progress: Progress = quiet) -> Path:
        """See Needed. A damaged file is replaced where it lies."""
        there = self.find()
        if there is not None and not mismatch(there, self.digest):
            return there
        target = there or self.path
        download(self.url, target, self.digest, progress=progress, hint=self.hint)
        return target
