"""Pictures to train on and to be measured by.

Super-resolution needs no labels: take a sharp picture `hr`, shrink it with MATLAB's bicubic to
`lr`, and learn the way back. This module finds named sets, makes such pairs, and cuts random
training patches.

Sets lie under the folder that the environment variable QSR_DATA names:

    $QSR_DATA/eval/NAME/HR/*.png         Set5, Set14, B100, Urban100, Manga109, ...
    $QSR_DATA/train/NAME/*.png|jpg       T91, General100, DIV2K, ...

Any folder of pictures works as well, and "embedded" needs no folder at all: a few photographs that
come with qsr and synthetic textures. Nothing is downloaded.

Training patches are a pure function of (seed, step): resuming a run needs no state of a sampler,
and two machines that start from the same seed see the same patches.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .image import FORMATS, Picture, imresize, read, to_uint8

EMBEDDED = "embedded"
PICTURES = Path(__file__).parent / "pictures"

# Named sets ---------------------------------------------------------------------------------------


def find_set(name: str | os.PathLike) -> list[Path]:
    """The picture files of a named set or a folder, sorted by name.

    Raises ValueError (one line) if there is no such set, or no picture in it.
    """
    folder = _set_folder(name)
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in FORMATS)
    if not files:
        raise ValueError(
            f"{folder} has no pictures ({', '.join(FORMATS)}); put the pictures of the set there."
        )
    return files


def _set_folder(name: str | os.PathLike) -> Path:
    if str(name) == EMBEDDED:
        return PICTURES
    root = os.environ.get("QSR_DATA")
    if root:
        for folder in (Path(root, "eval", name, "HR"), Path(root, "train", name)):
            if folder.is_dir():
                return folder
    if Path(name).is_dir():
        return Path(name)
    where = (
        f"under QSR_DATA ({root})" if root else "because the environment variable QSR_DATA is unset"
    )
    raise ValueError(
        f"no set or folder is called {str(name)!r} {where}; put its pictures into "
        "$QSR_DATA/eval/NAME/HR or $QSR_DATA/train/NAME, name a folder, or use 'embedded'."
    )


def photo() -> Picture:
    """The photograph that the demo and the first notebook enlarge (a cat, CC0)."""
    return read(PICTURES / "chelsea.png")


def textures(size: int = 192, seed: int = 0) -> dict[str, Tensor]:
    """Synthetic pictures with known content: name -> uint8 [3, size, size].

    A zone plate (every frequency up to the limit), coloured bars at many angles, and noise whose
    power falls as 1/f like that of photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    zone = 0.5 + 0.5 * torch.cos(math.pi * size / 4 * (x * x + y * y))
    angle = torch.atan2(y, x)
    star = torch.stack([(torch.cos(36 * angle + shift) > 0).double() for shift in (0.0, 0.7, 1.4)])
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).clamp(min=1 / size)
    white = torch.randn(3, size, size, generator=generator, dtype=torch.float64)
    pink = torch.fft.ifft2(torch.fft.fft2(white) / radius).real
    pink = 0.5 + 0.18 * pink / pink.std()
    return {
        "zone plate": to_uint8(zone.expand(3, -1, -1)),
        "star": to_uint8(star),
        "1/f noise": to_uint8(pink),
    }


# Pairs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """One test picture: lr [1, 3, h, w] and hr [1, 3, scale h, scale w], float RGB in [0, 1]."""

    name: str
    lr: Tensor
    hr: Tensor


def make_pair(name: str, hr: Tensor, scale: int) -> Pair:
    """hr: uint8 [3, H, W], cut to a multiple of scale; lr by MATLAB's bicubic, 8 bits."""
    height, width = (n // scale * scale for n in hr.shape[1:])
    if 0 in (height, width):
        raise ValueError(
            f"{name} is {hr.shape[1]} x {hr.shape[2]} pixels; a pair at scale {scale} needs at least "
            f"{scale} x {scale}."
        )
    hr = hr[:, :height, :width]
    lr = imresize(hr, 1 / scale)
    return Pair(name, lr[None].float() / 255, hr[None].float() / 255)


def pairs(name: str | os.PathLike, scale: int) -> Iterator[Pair]:
    """The pairs of a named set or a folder, one after another.

    Grey pictures are repeated to RGB (Set14's `bridge` is one; taking it as luma directly would
    lower its score by 20 log10(255 / 219) = 1.32 dB). "embedded" adds the synthetic textures.
    """
    for path in find_set(name):
        yield make_pair(path.stem, _read_uint8(path), scale)
    if str(name) == EMBEDDED:
        for texture, hr in textures().items():
            yield make_pair(texture, hr, scale)


def _read_uint8(path: Path) -> Tensor:
    """uint8 [3, H, W], transparency ignored."""
    return to_uint8(read(path).rgb[0])


# Training patches ---------------------------------------------------------------------------------


class Patches:
    """Random training patches of one or several sets.

    sets: names or folders. patch: side of the lr patch in pixels. batch: patches per step.
    split: "train" leaves out every tenth picture, "validation" is that tenth, "all" is everything.
    device: where pictures are kept (as uint8) and patches are cut.

    Every position in every picture is equally likely; each patch is flipped and turned at random
    (8 ways). Raises ValueError if no picture is as large as a patch; smaller ones are left out with
    a warning that counts them.
    """

    def __init__(
        self,
        sets: str | Sequence[str | os.PathLike] = EMBEDDED,
        scale: int = 4,
        patch: int = 48,
        batch: int = 16,
        seed: int = 0,
        split: Literal["train", "validation", "all"] = "train",
        device: str | torch.device = "cpu",
    ) -> None:
        if patch < 1 or batch < 1:
            raise ValueError(f"`patch` is {patch} and `batch` {batch}; both are 1 or more.")
        if split not in ("train", "validation", "all"):
            raise ValueError(f"`split` is {split!r}; it is train, validation or all.")
        self.scale, self.patch, self.batch_size, self.seed = scale, patch, batch, seed
        self.sets = [str(s) for s in ([sets] if isinstance(sets, (str, os.PathLike)) else sets)]
        self.hr: list[Tensor] = []  # uint8 [3, scale h, scale w]
        self.lr: list[Tensor] = []  # uint8 [3, h, w]
        small = 0
        for hr in _pictures(self.sets, split):
            if min(hr.shape[1:]) < scale * patch:
                small += 1
                continue
            height, width = (n // scale * scale for n in hr.shape[1:])
            hr = hr[:, :height, :width].to(device)
            self.hr.append(hr)
            self.lr.append(imresize(hr, 1 / scale))
        if not self.hr:
            raise ValueError(
                f"none of the pictures of {', '.join(self.sets)} ({split}) is {scale * patch} pixels "
                "a side, the size of a patch; use a smaller `patch` or larger pictures."
            )
        if small:
            warnings.warn(
                f"{small} of {small + len(self.hr)} pictures are smaller than a patch of "
                f"{scale * patch} pixels and are left out",
                stacklevel=2,
            )
        positions = [(lr.shape[1] - patch + 1) * (lr.shape[2] - patch + 1) for lr in self.lr]
        self._ends = torch.tensor(positions).cumsum(0)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The patches of one step: lr [B, 3, p, p], hr [B, 3, scale p, scale p], RGB in [0, 1]."""
        # Each step has its own generator. 2^32 steps lie between two seeds, so none overlap.
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        total = int(self._ends[-1])
        position = torch.randint(total, (self.batch_size,), generator=generator)
        turn = torch.randint(8, (self.batch_size,), generator=generator).tolist()
        index = torch.searchsorted(self._ends, position, right=True)
        lrs, hrs = [], []
        for i, at, way in zip(index.tolist(), position.tolist(), turn, strict=True):
            at -= int(self._ends[i - 1]) if i else 0
            y, x = divmod(at, self.lr[i].shape[2] - self.patch + 1)
            lrs.append(_turn(_cut(self.lr[i], y, x, self.patch), way))
            s = self.scale
            hrs.append(_turn(_cut(self.hr[i], s * y, s * x, s * self.patch), way))
        return torch.stack(lrs).float().div_(255), torch.stack(hrs).float().div_(255)


def _pictures(sets: Sequence[str], split: str) -> Iterator[Tensor]:
    """The pictures of a split, uint8 [3, H, W], with a progress bar when there are many."""
    files = []
    for name in sets:
        for i, path in enumerate(find_set(name)):
            if split == "all" or (i % 10 == 9) == (split == "validation"):
                files.append(path)
    for path in tqdm(files, desc="reading pictures", unit="picture", disable=len(files) < 50):
        yield _read_uint8(path)
    if EMBEDDED in sets and split != "validation":
        yield from textures().values()


def _cut(x: Tensor, y: int, x0: int, side: int) -> Tensor:
    return x[:, y : y + side, x0 : x0 + side]


def _turn(x: Tensor, way: int) -> Tensor:
    """One of the 8 flips and quarter turns of a square patch [3, p, p]."""
    if way & 1:
        x = x.flip(1)
    if way & 2:
        x = x.flip(2)
    return x.transpose(1, 2) if way & 4 else x
