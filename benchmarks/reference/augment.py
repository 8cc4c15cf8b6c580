"""Random views of a drawing through PIL and torchvision: the family of ferroclip's `[image]` section, under the same names.

Order: random resized crop, affine, flip, background behind the transparent parts (or alpha dropped, as open_clip's evaluation does:
before the crop where that would not resize the picture), colour jitter, grey.
"""

import math
import random
from dataclasses import dataclass, fields

import numpy as np
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image


@dataclass
class Augment:
    """What a training file leaves out has ferroclip's default, as here."""

    scale: tuple = (0.9, 1.0)
    ratio: tuple = (3 / 4, 4 / 3)
    rotate_degrees: float = 0.0
    translate: tuple = (0.0, 0.0)
    zoom: tuple = (1.0, 1.0)
    shear_degrees: float = 0.0
    affine_prob: float = 1.0
    flip_prob: float = 0.0
    color_jitter: tuple = (0.0,) * 4
    color_jitter_prob: float = 1.0
    gray_scale_prob: float = 0.0
    background_prob: float = 0.0
    background_gradient_prob: float = 0.0

    @staticmethod
    def of(section: dict) -> "Augment":
        """The `[image]` section of a ferroclip training file."""
        unknown = section.keys() - {field.name for field in fields(Augment)}
        if unknown:
            raise SystemExit(f"unknown fields in [image]: {', '.join(sorted(unknown))}")
        return Augment(**section)

    def view(self, picture: Image.Image, size: int, rng: random.Random) -> Image.Image:
        """An RGB picture of `size` x `size` from an RGBA one. `rng` draws all but the crop and the jitter, which torch's generator draws."""
        behind = self._background(size, rng) if rng.random() < self.background_prob else None
        if behind is None and min(picture.size) == size:
            picture = picture.convert("RGB")  # evaluation would not resize it, and show what is hidden
        top, left, height, width = T.RandomResizedCrop.get_params(picture, self.scale, self.ratio)
        out = F.resized_crop(picture, top, left, height, width, [size, size], T.InterpolationMode.BICUBIC, antialias=True)
        if rng.random() < self.affine_prob:
            out = self._affine(out, size, rng)
        if rng.random() < self.flip_prob:
            out = F.hflip(out)
        if behind is not None:
            out = Image.alpha_composite(behind, out)
        out = out.convert("RGB")  # drops alpha where no background came
        if rng.random() < self.color_jitter_prob:
            out = T.ColorJitter(*self.color_jitter)(out)
        return F.rgb_to_grayscale(out, 3) if rng.random() < self.gray_scale_prob else out

    def _affine(self, picture: Image.Image, size: int, rng: random.Random) -> Image.Image:
        shift = [round(rng.uniform(-most, most) * size) for most in self.translate]
        zoom = math.exp(rng.uniform(math.log(self.zoom[0]), math.log(self.zoom[1])))
        angle, shear = (rng.uniform(-most, most) for most in (self.rotate_degrees, self.shear_degrees))
        return F.affine(picture, angle, shift, zoom, [shear], T.InterpolationMode.BILINEAR)

    def _background(self, size: int, rng: random.Random) -> Image.Image:
        """One colour, or a straight gradient between two."""
        colour = lambda: np.array([rng.randrange(256) for _ in range(3)], dtype=np.float32)
        first = second = colour()
        if rng.random() < self.background_gradient_prob:
            second = colour()
        angle = rng.uniform(0, 2 * math.pi)
        place = (2 * np.arange(size) + 1) / size - 1
        along = math.cos(angle) * place[None, :] + math.sin(angle) * place[:, None]
        share = np.clip(0.5 + 0.5 * along, 0, 1)[..., None]
        return Image.fromarray((first + (second - first) * share + 0.5).astype(np.uint8)).convert("RGBA")
