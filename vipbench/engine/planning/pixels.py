"""What the images of a dataset are, and what their values of more than 8 bits mean: one rule for
all, decided once, before anything is drawn.

A 16-bit file whose values end at 4095 may be a dark photograph or a 12-bit X-ray. So the card
decides; else what files say themselves (TIFF's MaxSampleValue, PNG's sBIT, DICOM's Bits Stored);
else training images that use the 16 bits. Where nobody decides the dataset is refused. Files whose
format tells the range (12-bit TIFF, PGM's maxval, DICOM with a window, 8 bits) are read by it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vipbench.api.dataset import DataError, Split
from vipbench.engine.planning.remembered import Remembered
from vipbench.images import ImageError, ImageFacts, PixelRange, examine_image
from vipbench.images.depth import FULL, HALF_OF_16_BITS, SBIT, StoredAs, card_lines


@dataclass(frozen=True)
class _FoundImage:
    """An image: its split, its name, what was found."""

    split: str
    name: str
    facts: ImageFacts


def examine(
    splits: Mapping[str, Split], given: PixelRange | None
) -> tuple[dict[str, Split], list[str]]:
    """The splits with the digests of their images and the range of their pixels, and sentences on
    what the user should know. Every image is read once, and decoded where its depth is in question;
    those whose digests the loader gave (`Split.planned`), or an earlier plan found, are not read.

    given: what the user says of pixels. Raises DataError where nothing says which value is white,
    ImageError for images that cannot be read.
    """
    seen: list[_FoundImage] = []
    known = Remembered([split.images for split in splits.values() if split.planned is None])
    refused: list[tuple[str, ImageError]] = []
    settled = given is not None and not given.is_window
    for name in sorted(splits, key=lambda name: name != "train"):
        split = splits[name]
        for i in range(len(split)):
            if split.planned is not None:
                seen.append(
                    _FoundImage(name, split.ids[i], ImageFacts(split.planned[i], StoredAs()))
                )
                continue
            wanted = name == "train" and not settled
            own = split.ids[i]
            try:
                image = split.images[i]
                found = known.examine(image, own, wanted, known=given is not None)
            except ImageError as error:
                refused.append((own, error))
                continue
            seen.append(_FoundImage(name, own, found))
            # One value in the upper half shows that all 16 bits are used.
            settled |= given is None and (found.most or 0) >= HALF_OF_16_BITS
    if refused:
        (_, first), *others = refused
        more = (
            f"; and {len(others)} more cannot be read, such as '{others[0][0]}'" if others else ""
        )
        raise ImageError(f"{first}{more}") from first
    if given is None and not any(
        _has_open_range(image) and image.split == "train" for image in seen
    ):
        _measure_others(splits, seen)
    known.keep()
    pixels, notes = _decide(seen, given)
    digests = {
        name: tuple(image.facts.digest for image in seen if image.split == name) for name in splits
    }
    made = {
        name: dataclasses.replace(split, planned=digests[name], pixels=pixels)
        for name, split in splits.items()
    }
    return made, [*_further_notes(seen), *notes]


def _measure_others(splits: Mapping[str, Split], seen: list[_FoundImage]) -> None:
    """Put in the values of images of more than 8 bits where training images have none: as many as
    it takes to see that all 16 bits are used."""
    place = 0
    for name in sorted(splits, key=lambda name: name != "train"):
        for i in range(len(splits[name])):
            if _has_open_range(seen[place]):
                found = examine_image(splits[name].images[i], splits[name].ids[i], values=True)
                seen[place] = _FoundImage(name, splits[name].ids[i], found)
                if (found.most or 0) >= HALF_OF_16_BITS:
                    return
            place += 1


def _has_open_range(image: _FoundImage) -> bool:
    """Whether the image's file leaves its range open."""
    return image.facts.stored is not None and image.facts.stored.open


def _decide(
    seen: Sequence[_FoundImage], given: PixelRange | None
) -> tuple[PixelRange | None, list[str]]:
    deep = [image for image in seen if image.facts.stored is not None and image.facts.stored.deep]
    if given is not None:
        return _as_given(seen, deep, given)
    unclear = [image for image in deep if _has_open_range(image)]
    measured = [image for image in unclear if image.facts.most is not None]
    if not measured:
        return None, []
    least = min(image.facts.least or 0 for image in measured)
    most = max(image.facts.most or 0 for image in measured)
    pixels = _declared(unclear, least, most)
    if pixels is not None:
        black = f"{pixels.low:g} is black and " if pixels.low else ""
        return pixels, [
            f"{black}{pixels.high:g} is white in {len(unclear)} images of more than 8 bits, by "
            f"{pixels.source}"
        ]
    kinds = [image.facts.stored for image in unclear if image.facts.stored is not None]
    plain = all(kind.bits == 16 and not kind.floats for kind in kinds)
    if plain and least >= 0 and most >= HALF_OF_16_BITS:
        return PixelRange(), []
    floats = any(kind.floats for kind in kinds)
    form = "floating-point" if floats else "signed or 32-bit" if not plain else "16-bit"
    raise DataError(
        f"{len(unclear)} images have {form} pixels, from {least:g} to {most:g} in split "
        f"'{measured[0].split}' ('{measured[0].name}', ...), and nothing states which value is "
        f"white; state it in the card: {card_lines(least, most, floats)}"
    )


def _declared(unclear: Sequence[_FoundImage], least: float, most: float) -> PixelRange | None:
    """The range that files say themselves, None where none does."""
    declared: dict[tuple[float, str, float], _FoundImage] = {}
    for image in unclear:
        stored = image.facts.stored
        if stored is not None and stored.declared is not None:
            key = stored.declared, stored.declared_by, stored.declared_low
            declared.setdefault(key, image)
    if not declared:
        return None
    if len(declared) > 1:
        (one, by, low), (other, other_by, other_low), *_ = declared
        first, second = list(declared.values())[:2]
        raise DataError(
            f"images disagree on their pixel range: '{first.name}' by {by} on {low:g} to {one:g}, "
            f"'{second.name}' by {other_by} on {other_low:g} to {other:g}; a dataset has one "
            f"range; state it in the card: "
            f"{card_lines(min(least, low, other_low), max(one, other), floats=False)}"
        )
    [((high, by, low), first)] = declared.items()
    if most > high and by != SBIT:
        raise DataError(
            f"'{first.name}' states by {by} that {high} is white, but images have values up to "
            f"{most:g}; "
            f"state the range in the card: {card_lines(least, most, floats=False)}"
        )
    if most > high:
        # The PNG standard has values spread over all 16 bits, and sBIT tell how many there were.
        high = FULL
    return PixelRange(low, high, by)


def _as_given(
    seen: Sequence[_FoundImage], deep: Sequence[_FoundImage], given: PixelRange
) -> tuple[PixelRange, list[str]]:
    line = given.source.removeprefix("the card's ")
    if not deep:
        raise DataError(
            f"the card says `{line}`, but no image has more than 8 bits; remove the line"
        )
    if not given.is_window:
        return given, []
    shallow = [i for i in seen if i.facts.stored is not None and not i.facts.stored.deep]
    if shallow:
        raise DataError(
            f"the card says `window`, which is for images of more than 8 bits; "
            f"'{shallow[0].name}' has 8"
            + (f", and {len(shallow) - 1} more" if len(shallow) > 1 else "")
        )
    train = [image.facts for image in deep if image.split == "train"]
    below = sum(f.least is not None and f.least < given.low for f in train)
    above = sum(f.most is not None and f.most > given.high for f in train)
    pixels = dataclasses.replace(given, clips_low=below > 0, clips_high=above > 0)
    notes = [
        f"{count} of {len(train)} training images have values {side} the card's window, which are "
        f"clipped"
        for count, side in ((below, "below"), (above, "above"))
        if count
    ]
    return pixels, notes


def _further_notes(seen: Sequence[_FoundImage]) -> list[str]:
    """Sentences on what was found beside the range."""
    paged = [i.name for i in seen if i.facts.stored is not None and i.facts.stored.pages]
    empty = [i.name for i in seen if i.facts.empty_alpha]
    notes = [
        f"{len(names)} of {len(seen)} images have {what} ('{names[0]}'"
        + (", ...)" if len(names) > 1 else ")")
        for names, what in (
            (paged, "several pages or frames; the first is read"),
            (empty, "an alpha channel that is zero everywhere; they are read without it"),
        )
        if names
    ]
    depths = Counter(
        max(image.facts.stored.bits, 8) for image in seen if image.facts.stored is not None
    )
    if len(depths) > 1:
        parts = ", ".join(f"{count} of {bits} bits" for bits, count in sorted(depths.items()))
        notes.append(f"images of different depths ({parts}); each is read by its own range")
    return notes
