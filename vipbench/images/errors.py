"""What goes wrong with an image."""


class ImageError(ValueError):
    """An image cannot be read; the message names it and says why. tested: whether it is one that
    a run scores, and none that it trains on."""

    tested = False


class ImageChangedError(ImageError):
    """An image is not the one that the run was planned with."""
