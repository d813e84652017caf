"""A backbone as a plugin: the pixels of a thumbnail."""

import torch
from PIL import Image
from torch import nn

import vipbench
from vipbench.api import ImageBackbone, UnsupportedError


class Thumbnail(ImageBackbone):
    """The pixels of a small thumbnail as features."""

    vision_width, vision_layers = None, 0
    device = torch.device("cpu")
    licence = "Apache-2.0"

    def __init__(self, argument):
        self.image_size = int(argument or 8)
        self.name = f"thumbnail-{self.image_size}"
        self.fingerprint = f"thumbnail-1-{self.image_size}"  # of weights, where there are any
        self.dim = 3 * self.image_size**2

    def to(self, device):
        self.device = torch.device(device)

    def preprocess(self, image):
        small = image.resize((self.image_size, self.image_size), Image.Resampling.BOX)
        values = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float()
        return values.reshape(self.image_size, self.image_size, 3).permute(2, 0, 1) / 127.5 - 1

    def encode_image(self, pixels, tap=None):
        if tap is not None:
            raise UnsupportedError("a thumbnail has no transformer blocks")
        return pixels.flatten(1)

    def trainable_copy(self, pretrained=True):
        return nn.Flatten()


@vipbench.hookimpl
def register_backbones(register):
    register("thumbnail", Thumbnail, help="thumbnail[:SIDE], raw pixels of a thumbnail")
