"""What runs in a process that decodes images for a worker; see `decoders`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vipbench.api import Views, open_image
from vipbench.engine.features.views import training_view
from vipbench.fetching import offline
from vipbench.images import PixelRange

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Job:
    """What a decoder makes of one image. image: absolute path, or uint8 array. size: H. cuts: of
    each kind of views what draws them; None is the evaluation view, once for each of its keys.
    scale, sha256: as `open_image` takes them."""

    image: str | npt.NDArray[np.uint8]
    size: int
    cuts: tuple[tuple[Views | None, tuple[tuple[object, ...], ...]], ...]
    scale: PixelRange | None = None
    sha256: str | None = None

    def pixels(self, image: Image.Image, preprocess: Transform) -> list[Tensor]:
        """The preprocessed views (3,H,H) of the opened `image`."""
        return [
            preprocess(image if views is None else training_view(image, self.size, views, key))
            for views, keys in self.cuts
            for key in keys
        ]


def serve(link: Connection) -> None:
    """A decoder: a transform comes through `link`, then one Job after the other, until it ends."""
    # The worker decides what a signal to the whole group means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    offline.obey()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        try:
            transform: Transform = link.recv()
        except EOFError:
            return
        except Exception as error:  # a plugin's module that only its worker knows, say
            link.send(f"{type(error).__name__}: {error}")
            return
        link.send("")
        while True:
            try:
                job = link.recv()
            except (EOFError, OSError):
                return
            except Exception:
                link.send(None)
            else:
                _answer(link, job, transform)


def _answer(link: Connection, job: Job, transform: Transform) -> None:
    """Send type and shape of each view, then their bytes; None where the job cannot be done."""
    try:
        views = job.pixels(open_image(job.image, "image", job.scale, job.sha256), transform)
        views = [view.detach().cpu().contiguous() for view in views]
        heads = [(view.dtype, tuple(view.shape)) for view in views]
    except Exception:  # the thread tries it, too, and tells the user
        link.send(None)
        return
    link.send(heads)
    for view in views:
        link.send_bytes(bytes_of(view))


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, to be read or written."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
