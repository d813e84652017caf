"""Captions for the training pairs of tiny-clip: attribute phrases, in several wordings each.

A caption says one to four things that are true of its image. No word of a class name of the
`synthderm` dataset occurs here; a test holds this file to it.
"""

from __future__ import annotations

from vipbench.datasets._render import Attributes, Stream

PHRASES: dict[tuple[str, str], tuple[str, ...]] = {
    ("shape", "round"): (
        "a round shape",
        "a round, symmetric outline",
        "a circular shape",
        "a symmetric round form",
        "a circular symmetric spot",
    ),
    ("shape", "oval"): (
        "an oval shape",
        "an oval outline",
        "an elongated shape",
        "an elongated oval form",
        "a long oval spot",
    ),
    ("shape", "asymmetric"): (
        "an asymmetric shape",
        "a lopsided outline",
        "two halves that do not match",
        "an uneven, asymmetric form",
        "a lopsided asymmetric spot",
    ),
    ("border", "smooth"): (
        "a smooth border",
        "a sharp, even edge",
        "clean sharp margins",
        "a smooth sharp edge",
        "an even border",
    ),
    ("border", "ragged"): (
        "a ragged border",
        "an irregular edge",
        "notched, jagged margins",
        "a jagged irregular border",
        "a notched edge",
    ),
    ("border", "blurred"): (
        "a blurred border",
        "a faded edge",
        "soft margins that fade into the skin",
        "a soft blurred edge",
        "a fading border",
    ),
    ("colour", "brown"): ("a brown colour", "brown pigment", "a brown surface", "brown"),
    ("colour", "black"): ("a black colour", "black pigment", "a very dark black surface", "black"),
    ("colour", "red"): ("a red colour", "a bright red surface", "deep red", "red"),
    ("colour", "pink"): ("a pink colour", "a pale pink surface", "rosy pink", "pink"),
    ("colour", "blue"): ("a blue colour", "blue pigment", "a slate blue surface", "blue"),
    ("colour", "yellow"): ("a yellow colour", "a waxy yellow surface", "golden yellow", "yellow"),
    ("palette", "single"): (
        "a single colour",
        "uniform colour",
        "one uniform tone",
        "the same colour all over",
    ),
    ("palette", "several"): (
        "several colours",
        "many colours at once",
        "patches of different colours",
        "a mixture of several tones",
    ),
    ("size", "small"): ("a small size", "a small spot", "small"),
    ("size", "large"): ("a large size", "a large spot", "large"),
    ("structures", "dots"): (
        "dark dots",
        "small dark dots",
        "scattered dots",
        "many dark dots inside",
    ),
    ("structures", "streaks"): (
        "dark streaks at the rim",
        "radial streaks",
        "rays around the rim",
        "dark radial rays",
    ),
    ("structures", "network"): (
        "a pigment network",
        "a grid of dark lines",
        "a net of crossing lines",
        "a dark network grid",
    ),
    ("structures", "veil"): (
        "a bluish veil",
        "a hazy blue-white veil",
        "a milky bluish haze",
        "a blue-white haze on top",
    ),
    ("structures", "ulcer"): (
        "an ulcer",
        "an open red ulcer",
        "a bleeding crater",
        "an open sore in the middle",
        "a bleeding open sore",
    ),
    ("structures", "scale"): (
        "white scale",
        "white flakes",
        "a scaly, flaky surface",
        "dry white scales and flakes",
    ),
    ("structures", "vessels"): (
        "thin red vessels",
        "blood vessels",
        "fine winding vessels",
        "winding thin red lines",
    ),
    ("structures", "cysts"): (
        "white cysts",
        "bright round cysts",
        "pale bright beads",
        "small white beads",
    ),
}

OPENINGS = (
    "",
    "",
    "",
    "a photo of ",
    "a photo of a spot with ",
    "a close-up of ",
    "a picture of skin with ",
    "a spot with ",
    "the lesion shows ",
    "a skin lesion with ",
    "there is ",
    "this image shows ",
    "one can see ",
    "it has ",
)

FACTS = tuple(PHRASES)
"""Everything that can be said; the order of the columns of `truth`."""


def facts_of(attributes: Attributes) -> list[tuple[str, str]]:
    """All that is true of an image, in the order of FACTS."""
    return [
        (kind, value)
        for kind, value in FACTS
        if (
            value in attributes.structures
            if kind == "structures"
            else getattr(attributes, kind) == value
        )
    ]


def caption(attributes: Attributes, rng: Stream) -> tuple[str, list[tuple[str, str]]]:
    """A caption of one to four facts, and those facts."""
    left = facts_of(attributes)
    said: list[tuple[str, str]] = []
    for _ in range(1 + int(rng.uniform(0, 4))):
        if not left:
            break
        # Structures are what classes differ in most; size matters to none of them.
        weights = [{"size": 0.4, "structures": 1.6}.get(kind, 1.0) for kind, _ in left]
        mark = rng.uniform(0.0, sum(weights))
        place = 0
        while place < len(left) - 1 and mark >= weights[place]:
            mark -= weights[place]
            place += 1
        said.append(left.pop(place))
    phrases = [rng.choice(PHRASES[fact]) for fact in said]
    glue = rng.choice((", ", ", ", " and ", " with "))
    ending = rng.choice(("", "."))
    return rng.choice(OPENINGS) + glue.join(phrases) + ending, said


def vocabulary() -> set[str]:
    """Every word that a caption can hold, lower case."""
    text = " ".join([*(p for ps in PHRASES.values() for p in ps), *OPENINGS, "and with"])
    for sign in ",.-":
        text = text.replace(sign, " ")
    return set(text.lower().split())
