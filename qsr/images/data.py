"""Pictures to train on and to be measured by.

Super-resolution needs no labels: take a sharp picture `hr`, shrink it with MATLAB's bicubic to
`lr`, and learn the way back. This module finds named sets, makes such pairs, and cuts random
training patches.

Sets lie under the folder that the environment variable QSR_DATA names:

    $QSR_DATA/eval/NAME/HR/*             Set5, Set14, B100, Urban100, Manga109, ...
    $QSR_DATA/train/NAME/*               T91, General100, DIV2K, ...

Any folder of PNG, JPEG or WebP pictures works as well, and so does one file that `pack_sets` made
of several sets (see `archive`). "embedded" needs none of these: the photographs that come with qsr
(their licences: qsr/images/pictures/LICENSES.md) and synthetic textures. Nothing is downloaded.

Training patches are a pure function of (seed, step): resuming a run needs no state of a sampler,
and two machines that start from the same seed see the same patches.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import archive
from .archive import Member, Source
from .formats import FORMATS, SPLITS
from .picture import Picture
from .reading import read, size
from .resize import imresize
from .tensors import to_uint8

EMBEDDED = "embedded"
PICTURES = Path(__file__).parent / "pictures"

# Named sets ---------------------------------------------------------------------------------------


def find_set(name: str | os.PathLike) -> Sequence[Path | Member]:
    """The picture files of a named set or a folder, sorted by name, or those in a packed file.

    A name without a slash is looked up in QSR_DATA first, then as a folder; "./NAME" is a folder.
    `picture.read` takes what is returned. Raises ValueError (one line) if there is no such set, no
    picture in it, or a file that is no packed one.
    """
    place = _place(name)
    if place.is_file():
        return [source.file for source in archive.read(place)]
    files = sorted(p for p in place.iterdir() if p.suffix.lower() in FORMATS)
    if not files:
        raise ValueError(
            f"{place} has no pictures ({', '.join(FORMATS)}); put the pictures of the set there."
        )
    return files


def list_sets() -> list[str]:
    """The names that `find_set` finds without a folder: "embedded", and those under QSR_DATA."""
    names = [EMBEDDED]
    if root := os.environ.get("QSR_DATA"):
        for pattern in ("eval/*/HR", "train/*"):
            for folder in sorted(Path(root).glob(pattern)):
                if folder.is_dir() and any(p.suffix.lower() in FORMATS for p in folder.iterdir()):
                    names.append(folder.parent.name if folder.name == "HR" else folder.name)
    return list(dict.fromkeys(names))


def contents(name: str | os.PathLike) -> list[dict]:
    """What is in a set, a folder or a packed file: a row for each set, from headers alone.

    A row holds set, pictures, held_out (how many of them are for validation), megapixels and mb
    (10^6 bytes of files). Errors as `find_set`, and for a file that is no picture.
    """
    rows: dict[str, dict] = {}
    for source in _sources(name):
        empty = {"pictures": 0, "held_out": 0, "megapixels": 0.0, "mb": 0.0}
        row = rows.setdefault(source.set, {"set": source.set, **empty})
        row["pictures"] += 1
        row["held_out"] += source.split == "validation"
        row["megapixels"] += math.prod(_size(source)) / 1e6
        if not isinstance(source.file, _Texture):  # which is made, not stored
            row["mb"] += archive.size(source.file) / 1e6
    return list(rows.values())


def pack_sets(
    out: str | os.PathLike,
    sets: str | os.PathLike | Sequence[str | os.PathLike],
    max_mb: float | None = None,
    split: Literal["train", "validation", "all"] = "all",
    overwrite: bool = False,
) -> dict[str, tuple[int, int]]:
    """Pack sets into one file (`images.archive`) that can be named wherever a set can.

    max_mb: the largest size of that file, in 10^6 bytes; whole pictures are left out for it, evenly
    over each set and always the same. Each picture is decoded once, so that a file that packs also
    trains. Returns {set: (pictures taken, of how many)}. Raises ValueError (one line) for a set
    that is missing, empty or "embedded", a picture that can't be trained on, an `out` that is there
    already (unless `overwrite`) or is no .zip, or a `max_mb` that is too small for one picture.

    Patches of the file of whole sets are those of the sets, bit for bit.
    """
    sets = [sets] if isinstance(sets, (str, os.PathLike)) else sets
    _check_split(split)
    if Path(out).suffix != ".zip":
        raise ValueError(f"{out} has the suffix {Path(out).suffix!r}; packed sets end in .zip.")
    if EMBEDDED in map(str, sets):
        raise ValueError(
            "'embedded' comes with qsr and is not packed; name it beside the packed file."
        )
    if max_mb is not None and not max_mb > 0:
        raise ValueError(f"`max_mb` is {max_mb}; it is above 0.")
    sources = _split(sets, split)
    if not sources:
        raise ValueError(_nothing(sets, split))
    taken = sources if max_mb is None else archive.select(sources, 1e6 * max_mb)
    archive.write(out, taken, _load, overwrite=overwrite)
    names = dict.fromkeys(source.set for source in sources)
    return {
        name: (sum(s.set == name for s in taken), sum(s.set == name for s in sources))
        for name in names
    }


def _place(name: str | os.PathLike) -> Path:
    """The folder of a set, or a file."""
    if str(name) == EMBEDDED:
        return PICTURES
    root = os.environ.get("QSR_DATA")
    if root and str(name) == Path(name).name:
        for folder in (Path(root, "eval", name, "HR"), Path(root, "train", name)):
            if folder.is_dir():
                return folder
    if str(name) and (Path(name).is_dir() or Path(name).is_file()):
        return Path(name)
    where = (
        f"under QSR_DATA ({root})" if root else "because the environment variable QSR_DATA is unset"
    )
    raise ValueError(
        f"no set or folder is called {str(name)!r} {where}; put its pictures into "
        "$QSR_DATA/eval/NAME/HR or $QSR_DATA/train/NAME, name a folder or packed file, or use "
        "'embedded'."
    )


def photo() -> Picture:
    """The photograph that the demo and the first notebook enlarge: 384 x 512, RGB, 8 bits."""
    return read(PICTURES / "astronaut.png")


def textures(size: int = 192, seed: int = 0) -> dict[str, Tensor]:
    """Synthetic pictures with known content: name -> uint8 [3, size, size].

    "glyphs": letter-like shapes with sharp edges. "noise": amplitude falls as 1 / frequency, as it
    does on average in photographs (Field, J. Opt. Soc. Am. A 4, 1987). "star": bars at every angle,
    finer towards the centre, one set of angles per colour. "zone": a zone plate, every frequency
    from 0 in the centre to the limit of 1/2 per pixel at the middle of each side.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    cells = math.ceil(size / 24)  # a letter is 5 x 5 dots of 3 x 3 pixels in a cell of 24 x 24
    dots = torch.zeros(cells, 8, cells, 8, dtype=torch.float64)
    dots[:, 1:6, :, 1:6] = torch.rand(cells, 5, cells, 5, generator=generator).lt(0.5).double()
    ink = dots.reshape(8 * cells, 8 * cells).repeat_interleave(3, 0).repeat_interleave(3, 1)
    glyphs = 0.95 - 0.85 * ink[:size, :size]

    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).clamp(min=1 / size)
    white = torch.randn(3, size, size, generator=generator, dtype=torch.float64)
    noise = torch.fft.ifft2(torch.fft.fft2(white) / radius).real
    noise = 0.5 + 0.18 * (noise - noise.mean()) / noise.std()

    angle = torch.atan2(y, x)
    star = torch.stack([(torch.cos(36 * angle + shift) > 0).double() for shift in (0.0, 0.7, 1.4)])

    # The phase grows by pi x per pixel, which is the limit at x = 1.
    zone = 0.5 + 0.5 * torch.cos(math.pi * size / 4 * (x * x + y * y))
    pictures = {"glyphs": glyphs, "noise": noise, "star": star, "zone": zone}
    return {name: to_uint8(p.expand(3, -1, -1)) for name, p in pictures.items()}


# Pairs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """One test picture: lr [1, 3, h, w] and hr [1, 3, scale h, scale w], float RGB in [0, 1]."""

    name: str
    lr: Tensor
    hr: Tensor


def make_pair(name: str, hr: Tensor, scale: int) -> Pair:
    """hr: uint8 [3, H, W], cut to a multiple of scale; lr by MATLAB's bicubic, 8 bits.

    Raises ValueError if hr is smaller than scale x scale, or scale is not a positive integer.
    """
    _check_scale(scale)
    if min(hr.shape[1:]) < scale:
        raise ValueError(
            f"{name} is {hr.shape[1]} x {hr.shape[2]} pixels; a pair at scale {scale} needs "
            f"{scale} x {scale} or more. Use a larger picture."
        )
    hr = _cut_to_multiple(hr, scale)
    lr = imresize(hr, 1 / scale)
    return Pair(name, lr[None].float() / 255, hr[None].float() / 255)


def held_out(
    sets: str | os.PathLike | Sequence[str | os.PathLike],
    scale: int,
    side: int = 64,
    most: int = 20,
) -> list[Pair]:
    """Pairs to choose a network by while it trains: from pictures that `Patches` holds back.

    The middle of at most `most` validation pictures of the sets, evenly chosen, lr at most `side`
    pixels high and wide, so that scoring them takes as long as a few steps. None, if the sets are
    packed files that hold none.
    """
    _check_scale(scale)
    sets = [sets] if isinstance(sets, (str, os.PathLike)) else sets
    sources = _split(sets, "validation")
    if len(sources) > most:
        sources = [sources[i * len(sources) // most] for i in range(most)]
    pairs = []
    for source in sources:
        hr = _load(source)
        top, left = (max(0, n - scale * side) // 2 for n in hr.shape[1:])
        hr = hr[:, top : top + scale * side, left : left + scale * side]
        pairs.append(make_pair(source.file.stem, hr, scale))
    return pairs


class Pairs(Sequence[Pair]):
    """The pairs of a set, a folder or a packed file; each is read and shrunk when it is asked for.

    Raises ValueError (one line) if there is no such set; asking for a pair whose file is damaged
    raises ValueError too.
    """

    def __init__(self, name: str | os.PathLike, scale: int) -> None:
        _check_scale(scale)
        self.scale = scale
        self._sources = _sources(name)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]  # a slice is no pair
        source = self._sources[index]
        return make_pair(source.file.stem, _load(source), self.scale)


def pairs(name: str | os.PathLike, scale: int) -> Pairs:
    """The pairs of a named set, a folder or a packed file: a sequence of Pair, sorted by name.

    Grey pictures are repeated to RGB (Set14's `bridge` is one; taking it as luma directly would
    lower its score by 20 log10(255 / 219) = 1.32 dB). "embedded" adds the synthetic textures.
    Raises ValueError (one line) if there is no such set or no picture in it.
    """
    return Pairs(name, scale)


@dataclass(frozen=True)
class _Texture:
    """In the place of a file: a picture that is made."""

    stem: str
    values: Tensor  # uint8 [3, H, W]


def _sources(name: str | os.PathLike) -> list[Source]:
    """The pictures of a set, each with its split. Of "embedded" also the synthetic textures."""
    place = _place(name)
    if place.is_file():
        return archive.read(place)  # which knows how each set was split
    files: list = list(find_set(name))
    label = _label(place)
    if str(name) == EMBEDDED:
        label = EMBEDDED
        files = [_Texture(stem, values) for stem, values in textures().items()] + files
    sources = []
    for i, file in enumerate(files):
        held_back = i % 10 == 9 or i == len(files) - 1 < 9
        sources.append(Source(file, label, "validation" if held_back else "train"))
    return sources


def _label(folder: Path) -> str:
    """What a folder of pictures is called: .../Set5/HR is Set5."""
    path = Path(os.path.abspath(folder))
    return path.parent.name if path.name == "HR" else path.name


def _load(source: Source) -> Tensor:
    """uint8 [3, H, W]."""
    file = source.file
    return file.values if isinstance(file, _Texture) else _read_uint8(file)


def _size(source: Source) -> tuple[int, int]:
    """(height, width), from the header alone."""
    file = source.file
    if isinstance(file, _Texture):
        _, height, width = file.values.shape
        return height, width
    return size(file)


def _read_uint8(path: Path | Member) -> Tensor:
    """uint8 [3, H, W], transparency ignored."""
    picture = read(path)
    if picture.levels > 255:
        raise ValueError(f"{path} has 16 bits; pictures of a set have 8. Convert it first.")
    return to_uint8(picture.rgb[0])


def _cut_to_multiple(hr: Tensor, scale: int) -> Tensor:
    height, width = (n // scale * scale for n in hr.shape[1:])
    return hr[:, :height, :width]


def _check_scale(scale: int) -> None:
    if scale != int(scale) or scale < 1:
        raise ValueError(f"`scale` is {scale!r}; pictures are shrunk by a whole factor, 1 or more.")


def _nothing(sets: Sequence[str | os.PathLike], split: str) -> str:
    return (
        f"no picture of {', '.join(map(str, sets))} is in the split {split!r}; add a set, or "
        "choose another split."
    )


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; it is one of {', '.join(SPLITS)}.")


# Training patches ---------------------------------------------------------------------------------


class Patches:
    """Random training patches of one or several sets.

    sets: names, folders or packed files. patch: side of the lr patch in pixels. batch: patches per
    step. split: "validation" is every tenth picture of each set (of fewer than ten, the last),
    "train" are the others, "all" is everything; in a packed file each picture has the split that it
    had in its set. device: where pictures are kept (as uint8: 3 bytes per pixel, and as much again
    over scale^2 for lr) and patches are cut.

    Every position in every picture is equally likely; each patch is flipped and turned at random
    (8 ways). The lr patch is cut from the shrunken picture, not shrunk from the hr patch, so it
    holds what the network will meet. Raises ValueError if no picture is as large as a patch;
    smaller ones are left out with a warning that counts them.

    >>> lr, hr = Patches("embedded", scale=2, patch=16, batch=4).batch(step=0)
    >>> lr.shape, hr.shape
    (torch.Size([4, 3, 16, 16]), torch.Size([4, 3, 32, 32]))
    """

    def __init__(
        self,
        sets: str | os.PathLike | Sequence[str | os.PathLike] = EMBEDDED,
        scale: int = 4,
        patch: int = 48,
        batch: int = 16,
        seed: int = 0,
        split: Literal["train", "validation", "all"] = "train",
        device: str | torch.device = "cpu",
    ) -> None:
        _check_scale(scale)
        if patch < 1 or batch < 1:
            raise ValueError(f"`patch` is {patch} and `batch` {batch}; both are 1 or more.")
        if seed < 0:
            raise ValueError(f"`seed` is {seed}; seeds are 0 or more.")
        _check_split(split)
        self.scale, self.patch, self.batch_size, self.seed = scale, patch, batch, seed
        self.sets = [str(s) for s in ([sets] if isinstance(sets, (str, os.PathLike)) else sets)]
        chosen = _split(self.sets, split)
        fitting = [source for source in chosen if min(_size(source)) >= scale * patch]
        if not chosen:
            raise ValueError(_nothing(self.sets, split))
        if not fitting:
            raise ValueError(
                f"no picture of {', '.join(self.sets)} ({split}) has {scale * patch} pixels a "
                "side, the size of a patch; use a smaller `patch`, larger or more pictures."
            )
        if len(fitting) < len(chosen):
            warnings.warn(
                f"{len(chosen) - len(fitting)} of {len(chosen)} pictures are smaller than a patch "
                f"of {scale * patch} pixels and are left out",
                stacklevel=2,
            )
        # All pixels of all pictures, lr and hr, in one tensor: to cut a batch is to look up rows.
        sides = [[length // scale for length in _size(source)] for source in fitting]
        total = sum(math.prod(lr) for lr in sides) * (1 + scale**2)
        self.pixels = torch.empty(total, 3, dtype=torch.uint8, device=device)
        self.lr: list[Tensor] = []  # of each picture, uint8 [3, h, w], a view of pixels
        self.hr: list[Tensor] = []  # uint8 [3, scale h, scale w]
        firsts, first = [], 0  # pixel of lr, and of hr
        for source in tqdm(fitting, desc="reading", unit="picture", disable=len(fitting) < 50):
            hr = _cut_to_multiple(_load(source), scale).to(device)
            for picture, kept in ((imresize(hr, 1 / scale), self.lr), (hr, self.hr)):
                height, width = picture.shape[1:]
                rows = self.pixels[first : first + height * width]
                kept.append(rows.view(height, width, 3).permute(2, 0, 1).copy_(picture))
                firsts.append(first)
                first += height * width
        self._firsts = np.reshape(firsts, (-1, 2))
        self._widths = np.array([lr.shape[2] for lr in self.lr])
        # Positions are numbered through all pictures; picture i has those below _ends[i].
        self._ends = np.cumsum(
            [(lr.shape[1] - patch + 1) * (lr.shape[2] - patch + 1) for lr in self.lr]
        )

    @property
    def identity(self) -> dict[str, int | str]:
        """What the patches of every step depend on; the pictures by themselves, not by their place.

        A checksum of every 16th pixel of every 16th row tells pictures apart in no time.
        """
        sampled = (hr[:, ::16, ::16].cpu().numpy().tobytes() for hr in self.hr)
        checksum = functools.reduce(lambda sum, pixels: zlib.crc32(pixels, sum), sampled, 0)
        data = f"{len(self.hr)} pictures with checksum {checksum:08x}"
        return {"data": data, "patch": self.patch, "batch": self.batch_size, "seed": self.seed}

    def batch(self, step: int, part: int = 0, parts: int = 1) -> tuple[Tensor, Tensor]:
        """The patches of one step: lr [B, 3, p, p], hr [B, 3, scale p, scale p], RGB in [0, 1].

        Of `parts` equal parts only number `part`: the share of one process of several. Raises
        ValueError if the batch has no such parts.
        """
        lr, hr = self.cut(self.draw(step, part, parts).to(self.pixels.device))
        return lr.contiguous(), hr.contiguous()

    def draw(self, step: int, part: int = 0, parts: int = 1) -> Tensor:
        """Where the patches of one step lie, as `cut` takes it: int64 [B, 4] on the CPU.

        A row is the first pixel of the lr patch and of the hr patch, the width of the lr picture,
        and which of the 8 ways it is turned. Arguments and errors as `batch`.
        """
        if self.batch_size % parts or not 0 <= part < parts:
            raise ValueError(
                f"`batch` is {self.batch_size}, and {parts} processes share it; it must be a "
                "multiple of their number."
            )
        share = self.batch_size // parts
        mine = slice(part * share, (part + 1) * share)
        # NumPy mixes seed and step into one state. (torch's CPU generator keeps 32 bits of a seed.)
        random = np.random.default_rng((self.seed, step))
        positions = random.integers(self._ends[-1], size=self.batch_size)[mine]
        ways = random.integers(8, size=self.batch_size)[mine]
        picture = np.searchsorted(self._ends, positions, side="right")
        inside = positions - np.concatenate([[0], self._ends])[picture]
        width = self._widths[picture]
        y, x = np.divmod(inside, width - self.patch + 1)
        lr, hr = self._firsts[picture].T
        lr, hr = lr + y * width + x, hr + self.scale * (self.scale * y * width + x)
        return torch.from_numpy(np.stack([lr, hr, width, ways], axis=1))

    def cut(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The patches (lr, hr) that `draw` chose, as `batch`, but channels last in memory.

        drawn: on the device of the pictures. Nothing is read back from there, so a step of
        training can begin with this inside a CUDA graph.
        """
        lr, hr, width, way = drawn[:, :, None].unbind(1)
        return (
            self._cut(lr, width, way, self.patch),
            self._cut(hr, self.scale * width, way, self.scale * self.patch),
        )

    def _cut(self, first: Tensor, width: Tensor, way: Tensor, side: int) -> Tensor:
        """Square patches [B, 3, side, side] by the pixel in their corner, each [B, 1].

        Of the 8 ways, 1 turns rows upside down, 2 columns, and then 4 exchanges both.
        """
        forward = torch.arange(side, device=first.device)
        y = torch.where(way & 1 > 0, side - 1 - forward, forward) * width
        x = torch.where(way & 2 > 0, side - 1 - forward, forward)
        down, across = torch.where(way & 4 > 0, x, y), torch.where(way & 4 > 0, y, x)
        place = (first + down)[:, :, None] + across[:, None, :]
        patches = self.pixels.index_select(0, place.flatten()).view(*place.shape, 3)
        return patches.permute(0, 3, 1, 2).float().div_(255)


def _split(sets: Sequence[str | os.PathLike], split: str) -> list[Source]:
    sources = [source for name in sets for source in _sources(name)]
    return [source for source in sources if split in ("all", source.split)]
