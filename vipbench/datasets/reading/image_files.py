"""Which of the files in a class folder are its images, and sentences on those that are not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# What file managers and network storage leave behind: thumbnails, settings, bins.
_LITTER = re.compile(
    r"__macosx|(eh)?thumbs(_vista)?\.db|desktop\.ini|picasa\.ini|zbthumbnail\.info|icon\r"
    r"|@eadir|@tmp|@recycle|@recently-snapshot|@__thumb|@sharebin|#recycle|#snapshot"
    r"|\$recycle\.bin|recycler|recycled|lost\+found|system volume information"
    r"|network trash folder|temporary items"
    r"|syno(photo|file|index|video)_.*|~\$.*|.*@syno(eastream|resource)|.*:zone\.identifier"
    r"|.*\.(xmp|thm|aae|lnk|url)",
    re.DOTALL,
)

# How people call the files that go with an image of the same name.
_PARTNER = (
    r"(?:(?:lesion|binary|seg(?:mentation)?|gt|roi|tumou?r|polyp)[ _.-]?)?"
    r"(?:masks?|segm?(?:entations?)?|annot(?:ation)?s?|annotated|gt|ground[ _-]?truth|labels?"
    r"|contours?|outlines?|overlays?|roi|superpixels?|heat[ _-]?maps?|grad[ _-]?cam|saliency"
    r"|thumb(?:nail)?s?|lesion|attribute[ _-].+)"
)
_BEHIND = re.compile(rf"(?P<stem>.+?)[ _.-]+{_PARTNER}[ _.-]*\(?\d*\)?", re.IGNORECASE)
_BEFORE = re.compile(rf"{_PARTNER}[ _.-]+(?P<stem>.+)", re.IGNORECASE)
_FOLDER = re.compile(rf"{_PARTNER}|images?[ _-]{_PARTNER}", re.IGNORECASE)


def is_litter(name: str) -> bool:
    """Whether file managers or network storage put a file or folder there, and no person."""
    return name.startswith(".") or bool(_LITTER.fullmatch(name.casefold()))


def without_partners(images: Sequence[Path], folder: Path) -> tuple[list[Path], list[Path]]:
    """The images of a class folder, and those that by their names are masks, outlines, thumbnails
    of others of them: `x_mask.png` beside `x.png`, `masks/x.png` beside `images/x.png`."""
    plain = {(image.parent, image.stem.casefold()) for image in images}
    stems = Counter(image.stem.casefold() for image in images)
    partners = set()
    for image in images:
        stem = image.stem.casefold()
        found = [m["stem"] for p in (_BEHIND, _BEFORE) if (m := p.fullmatch(stem))]
        found += [Path(name).stem for name in found]  # x.png.mask.png
        kind = [p for p in image.parents if p != folder and _FOLDER.fullmatch(p.name)]
        kind = [p for p in kind if p.is_relative_to(folder)]
        if kind and (stems[stem] > 1 or any(stems[name] for name in found)):
            partners |= {other for other in images if other.is_relative_to(kind[0])}
        elif any((image.parent, name) in plain for name in found):
            partners.add(image)
    return [i for i in images if i not in partners], [i for i in images if i in partners]


@dataclass
class PassedOver:
    """What the class folders below `root` hold beside their images."""

    root: Path
    _others: Counter[str] = field(default_factory=Counter)
    _partners: list[Path] = field(default_factory=list)
    _twins: list[tuple[Path, Path]] = field(default_factory=list)

    def take(self, folder: Path, images: Sequence[Path], others: Sequence[Path]) -> list[Path]:
        """The images of the class folder `folder`, without partners of others of them. others:
        its files that are no images."""
        own, partners = without_partners(images, folder)
        self._others.update(other.suffix.lower() or "without an ending" for other in others)
        self._partners += partners
        first: dict[Path, Path] = {}
        for image in own:
            other = first.setdefault(image.with_suffix(""), image)
            if other != image:
                self._twins.append((other, image))
        return own

    def notes(self) -> list[str]:
        """A sentence each on files of other kinds, on partners that were left out, and on images
        whose names differ in the ending alone, which were not."""
        lines = []
        if self._others:
            kinds = ", ".join(f"{n} {kind}" for kind, n in self._others.most_common())
            lines.append(f"{_files(self._others.total())} of other types left out: {kinds}")
        if self._partners:
            names = [f"'{path.relative_to(self.root).as_posix()}'" for path in self._partners]
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(
                f"{_files(len(names))} named like masks of other images left out ({some}); rename "
                f"those that are images of their own"
            )
        if self._twins:
            one, other = self._twins[0]
            lines.append(
                f"{len(self._twins)} pairs of images differ only in their extension "
                f"('{one.relative_to(self.root).as_posix()}', '{other.name}'); both are read"
            )
        return lines


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"
