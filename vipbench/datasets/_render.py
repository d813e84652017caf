"""Procedural skin lesions: from a list of attributes and a random stream to a 64x64 RGB image.

Pure functions on numpy arrays; nothing here knows of classes, splits or captions, so that the
`synthderm` dataset and the training pairs of `tiny-clip` are drawn by the very same painter.

All randomness comes from the raw 64-bit output of PCG64, which numpy promises never to change
(NEP 19 allows the *distributions* of `Generator` to change between releases), and only from sums
of those numbers. What is left to the platform is the last bit of `sin` and `cos` before rounding
to eight bits.

Source: own work. The attributes are the everyday words of dermoscopy (ABCD rule, seven-point
checklist); the images are cartoons of them and carry no medical information.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SIZE = 64
"""Height and width of an image in pixels."""

SHAPES = ("round", "oval", "asymmetric")
BORDERS = ("smooth", "ragged", "blurred")
COLOURS = ("brown", "black", "red", "pink", "blue", "yellow")
PALETTES = ("single", "several")
SIZES = ("small", "large")
STRUCTURES = ("dots", "streaks", "network", "veil", "ulcer", "scale", "vessels", "cysts")

_RGB: dict[str, tuple[float, float, float]] = {
    "brown": (0.50, 0.31, 0.19),
    "black": (0.17, 0.14, 0.14),
    "red": (0.73, 0.19, 0.18),
    "pink": (0.90, 0.52, 0.57),
    "blue": (0.33, 0.39, 0.60),
    "yellow": (0.83, 0.69, 0.32),
}


@dataclass(frozen=True)
class Attributes:
    """What is to be seen on one image.

    `shape`, `border`, `colour`, `palette`, `size` are each one word of the tuple of that name in
    this module; `structures` is a subset of `STRUCTURES` in that order.
    """

    shape: str
    border: str
    colour: str
    palette: str
    size: str
    structures: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("shape", self.shape, SHAPES),
            ("border", self.border, BORDERS),
            ("colour", self.colour, COLOURS),
            ("palette", self.palette, PALETTES),
            ("size", self.size, SIZES),
            *(("structures", value, STRUCTURES) for value in self.structures),
        ):
            if value not in allowed:
                raise ValueError(
                    f"lesion attribute {name}: got {value!r}, expected one of "
                    f"{', '.join(allowed)}; correct the attribute"
                )


class Stream:
    """Random numbers that are the same with every numpy release.

    `key` is a sequence of non-negative integers; equal keys give equal streams, and different
    keys independent ones (`numpy.random.SeedSequence`).
    """

    def __init__(self, key: Sequence[int]) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(list(key)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high)."""
        return low + (high - low) * ((self._bits.random_raw() >> 11) * 2.0**-53)

    def field(self, *shape: int) -> Array:
        """Independent numbers in [0, 1), float64, of the given shape."""
        raw = np.asarray(self._bits.random_raw(math.prod(shape)), dtype=np.uint64)
        raw >>= np.uint64(11)
        numbers = raw.astype(np.float64)
        numbers *= 2.0**-53
        return numbers.reshape(shape)

    def bell(self, *shape: int) -> Array:
        """Bell-shaped numbers of mean 0 and variance 1 (three uniforms summed, exact)."""
        total: Array = self.field(3, *shape).sum(axis=0)
        total -= 1.5
        total *= 2.0
        return total

    def choice(self, options: Sequence[str]) -> str:
        """One of `options`, all equally likely."""
        return options[int(self.uniform() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability


def _axis() -> tuple[Array, Array]:
    """Pixel centres as x, y (64, 64), from -1 to 1; y grows downwards."""
    line = (np.arange(SIZE, dtype=np.float64) + 0.5) / SIZE * 2.0 - 1.0
    return np.broadcast_to(line, (SIZE, SIZE)), np.broadcast_to(line[:, None], (SIZE, SIZE))


_X, _Y = _axis()


def _ramp(value: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, a cubic in between; elementwise."""
    t = value - low
    t /= high - low
    np.clip(t, 0.0, 1.0, out=t)
    return t * t * (3.0 - 2.0 * t)


def _clouds(rng: Stream, cells: int) -> Array:
    """Smooth noise in [0, 1], (64, 64): a random grid of `cells`+1 corners, interpolated."""
    grid = rng.field(cells + 1, cells + 1)
    place = (np.arange(SIZE, dtype=np.float64) + 0.5) / SIZE * cells
    low = np.minimum(place.astype(np.int64), cells - 1)
    t = place - low
    t = t * t * (3.0 - 2.0 * t)
    rows = grid[low] * (1.0 - t)[:, None] + grid[low + 1] * t[:, None]
    clouds: Array = rows[:, low] * (1.0 - t) + rows[:, low + 1] * t
    return clouds


def _blend(canvas: Array, colour: Sequence[float], alpha: Array) -> None:
    """Paint `colour` over canvas (3, 64, 64) with opacity alpha (64, 64), in place."""
    change = np.asarray(colour)[:, None, None] - canvas
    change *= alpha
    canvas += change


def _tint(rng: Stream, colour: Sequence[float], spread: float) -> list[float]:
    """`colour` (red, green, blue in 0..1), each channel moved by about `spread`."""
    return [float(c + spread * e) for c, e in zip(colour, rng.bell(3), strict=True)]


@dataclass(frozen=True)
class _Lesion:
    """The outline: centre, mean radius (image half-widths), and maps of shape (64, 64)."""

    cx: float
    cy: float
    radius: float
    angle: Array  # of each pixel seen from the centre, radians
    depth: Array  # 0 at the centre, 1 at the outline, more outside
    mask: Array  # opacity of the lesion, 0..1


def _outline(attributes: Attributes, rng: Stream) -> _Lesion:
    radius = rng.uniform(0.36, 0.46) if attributes.size == "small" else rng.uniform(0.56, 0.70)
    cx, cy = rng.uniform(-0.16, 0.16), rng.uniform(-0.16, 0.16)
    dx, dy = _X - cx, _Y - cy
    angle = np.arctan2(dy, dx)
    phase = 2.0 * np.pi * rng.field(10)
    outline = np.full((SIZE, SIZE), 1.0)
    if attributes.shape == "round":
        outline += rng.uniform(0.0, 0.05) * np.cos(2.0 * angle + phase[0])
    elif attributes.shape == "oval":
        outline += rng.uniform(0.22, 0.34) * np.cos(2.0 * angle + phase[0])
    else:
        # Odd harmonics break the mirror symmetry: one lobe, and a bulge on one side only.
        outline += rng.uniform(0.16, 0.28) * np.cos(angle + phase[0])
        outline += rng.uniform(0.08, 0.20) * np.cos(2.0 * angle + phase[1])
        outline += rng.uniform(0.12, 0.22) * np.cos(3.0 * angle + phase[2])
    if attributes.border == "ragged":
        for k, p in zip(range(6, 12), phase[3:9], strict=True):
            outline += rng.uniform(0.02, 0.09) * np.cos(k * angle + p)
    depth = np.sqrt(dx * dx + dy * dy) / (radius * np.maximum(outline, 0.25))
    soft = rng.uniform(0.30, 0.45) if attributes.border == "blurred" else rng.uniform(0.04, 0.10)
    mask = 1.0 - _ramp(depth, 1.0 - soft, 1.0 + soft)
    return _Lesion(cx, cy, radius, angle, depth, mask)


def _specks(
    lesion: _Lesion, rng: Stream, count: int, size: tuple[float, float], reach: float
) -> Array:
    """Opacity (64, 64) of `count` small discs of radius `size`, within `reach` of the radius."""
    alpha = np.zeros((SIZE, SIZE))
    for _ in range(count):
        turn, out = rng.uniform(0.0, 2.0 * np.pi), reach * np.sqrt(rng.uniform())
        x = lesion.cx + lesion.radius * out * np.cos(turn)
        y = lesion.cy + lesion.radius * out * np.sin(turn)
        r = rng.uniform(*size)
        distance = np.sqrt((_X - x) ** 2 + (_Y - y) ** 2)
        alpha = np.maximum(alpha, 1.0 - _ramp(distance, r - 0.02, r + 0.02))
    return alpha


def _paint_structure(name: str, canvas: Array, lesion: _Lesion, rng: Stream) -> None:
    """Draw one of `STRUCTURES` on canvas (3, 64, 64), in place."""
    strength = rng.uniform(0.65, 0.95)
    if name == "dots":
        alpha = _specks(lesion, rng, 6 + int(rng.uniform(0, 7)), (0.035, 0.06), 0.85)
        _blend(canvas, _tint(rng, (0.10, 0.06, 0.05), 0.02), strength * alpha)
    elif name == "cysts":
        alpha = _specks(lesion, rng, 4 + int(rng.uniform(0, 5)), (0.05, 0.08), 0.8)
        _blend(canvas, _tint(rng, (0.97, 0.93, 0.78), 0.02), strength * alpha)
    elif name == "streaks":
        count, phase = 9 + int(rng.uniform(0, 7)), rng.uniform(0.0, 2.0 * np.pi)
        ring = _ramp(lesion.depth, 0.6, 0.75) * (1.0 - _ramp(lesion.depth, 1.2, 1.4))
        rays = _ramp(np.cos(count * lesion.angle + phase), 0.3, 0.7)
        _blend(canvas, _tint(rng, (0.14, 0.09, 0.08), 0.02), strength * ring * rays)
    elif name == "network":
        turn, pitch = rng.uniform(0.0, np.pi), rng.uniform(17.0, 23.0)
        u = pitch * (_X * np.cos(turn) + _Y * np.sin(turn))
        v = pitch * (_Y * np.cos(turn) - _X * np.sin(turn))
        lines = np.maximum(_ramp(np.cos(u), 0.45, 0.85), _ramp(np.cos(v), 0.45, 0.85))
        _blend(canvas, _tint(rng, (0.24, 0.14, 0.09), 0.02), strength * 0.9 * lines * lesion.mask)
    elif name == "veil":
        alpha = _ramp(_clouds(rng, 3), 0.30, 0.60) * lesion.mask
        _blend(canvas, _tint(rng, (0.58, 0.67, 0.84), 0.03), strength * 0.85 * alpha)
    elif name == "ulcer":
        turn, out = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.0, 0.35) * lesion.radius
        x, y = lesion.cx + out * np.cos(turn), lesion.cy + out * np.sin(turn)
        r = lesion.radius * rng.uniform(0.30, 0.42)
        distance = np.sqrt((_X - x) ** 2 + (_Y - y) ** 2) / r + 0.5 * (_clouds(rng, 8) - 0.5)
        _blend(canvas, (0.30, 0.05, 0.06), strength * (1.0 - _ramp(distance, 1.05, 1.30)))
        _blend(canvas, (0.80, 0.16, 0.14), strength * (1.0 - _ramp(distance, 0.65, 0.90)))
    elif name == "scale":
        alpha = _ramp(_clouds(rng, 16), 0.60, 0.72) * lesion.mask
        _blend(canvas, _tint(rng, (0.95, 0.94, 0.92), 0.02), strength * alpha)
    else:  # vessels: thin wavy lines across the lesion
        for _ in range(3):
            turn, phase = rng.uniform(0.0, np.pi), rng.uniform(0.0, 2.0 * np.pi)
            u = (_X - lesion.cx) * np.cos(turn) + (_Y - lesion.cy) * np.sin(turn)
            v = (_Y - lesion.cy) * np.cos(turn) - (_X - lesion.cx) * np.sin(turn)
            shift = rng.uniform(-0.5, 0.5) * lesion.radius
            line = np.abs(v - shift - 0.07 * np.sin(9.0 * u + phase))
            inside = 1.0 - _ramp(lesion.depth, 0.9, 1.15)
            alpha = strength * inside * (1.0 - _ramp(line, 0.02, 0.055))
            _blend(canvas, _tint(rng, (0.78, 0.06, 0.10), 0.02), alpha)


def _skin(rng: Stream) -> Array:
    """Bare skin (3, 64, 64): tone, uneven light, fine mottling. Nuisance, never an attribute."""
    fair, dark = np.asarray((0.95, 0.80, 0.71)), np.asarray((0.72, 0.53, 0.42))
    tone = (fair + rng.uniform() * (dark - fair))[:, None, None]
    canvas: Array = tone + 0.06 * (_clouds(rng, 6) - 0.5)
    return canvas


def paint(attributes: Attributes, rng: Stream) -> npt.NDArray[np.uint8]:
    """One image, (64, 64, 3) uint8 RGB, a pure function of `attributes` and the state of `rng`."""
    canvas = _skin(rng)
    lesion = _outline(attributes, rng)
    base = _tint(rng, _RGB[attributes.colour], 0.035)
    _blend(canvas, base, 0.95 * lesion.mask)
    if attributes.palette == "several":
        others = [c for c in COLOURS if c != attributes.colour]
        for cut in (0.52, 0.60):
            other = others.pop(int(rng.uniform() * len(others)))
            patch = _ramp(_clouds(rng, 4), cut, cut + 0.10) * lesion.mask
            _blend(canvas, _tint(rng, _RGB[other], 0.035), 0.9 * patch)
    else:
        _blend(canvas, [0.8 * c for c in base], 0.3 * _clouds(rng, 5) * lesion.mask)
    for name in STRUCTURES:
        if name in attributes.structures:
            _paint_structure(name, canvas, lesion, rng)
    for _ in range(int(rng.uniform(0.0, 3.0))):  # hairs: nuisance
        turn, shift = rng.uniform(0.0, np.pi), rng.uniform(-0.8, 0.8)
        bend = rng.uniform(-0.25, 0.25)
        u, v = _X * np.cos(turn) + _Y * np.sin(turn), _Y * np.cos(turn) - _X * np.sin(turn)
        _blend(
            canvas,
            (0.2, 0.15, 0.12),
            0.6 * (1 - _ramp(np.abs(v - shift - bend * u * u), 0.0, 0.04)),
        )
    canvas *= rng.uniform(0.88, 1.10) * (
        1.0 + rng.uniform(-0.10, 0.10) * _X + rng.uniform(-0.10, 0.10) * _Y
    )
    canvas += rng.uniform(0.01, 0.035) * rng.bell(SIZE, SIZE, 3).transpose(2, 0, 1)
    np.clip(canvas, 0.0, 1.0, out=canvas)
    canvas *= 255.0
    return np.ascontiguousarray(np.rint(canvas).astype(np.uint8).transpose(1, 2, 0))


def random_attributes(rng: Stream, structure_chance: float = 0.28) -> Attributes:
    """Attributes drawn independently: each value equally likely, each structure by chance."""
    return Attributes(
        shape=rng.choice(SHAPES),
        border=rng.choice(BORDERS),
        colour=rng.choice(COLOURS),
        palette=rng.choice(PALETTES),
        size=rng.choice(SIZES),
        structures=tuple(s for s in STRUCTURES if rng.chance(structure_chance)),
    )
