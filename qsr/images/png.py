"""PNG, row by row: a picture that is larger than memory is written as it is computed.

Pillow encodes whole pictures. A PNG does not need that: its pixels are one stream of zlib, in which
each row is the number of a filter and the bytes that this filter leaves of the row. A filter
predicts a byte from its neighbours to the left, above, and above to the left, and leaves what is
wrong with the prediction: in pictures mostly small numbers, which zlib packs better. What is around
the pixels (profile, resolution, EXIF, texts) is written by Pillow, for a picture of one pixel.

Source: PNG specification (W3C, third edition), sections 5, 9 and 12.8.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import IO, Any

import numpy as np
from PIL import Image

BLOCK = 2**19  # bytes that are filtered at once, so that they stay in the cache
CHUNK = 2**16  # bytes of an IDAT chunk, in whatever parts the rows come


def write(
    file: IO[bytes],
    rows: Iterable[np.ndarray],
    height: int,
    width: int,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write a PNG whose rows come in parts [R, width, C], from the top to the bottom.

    uint8 with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha); or uint16 with C = 1.
    options: of Pillow's `save`. Raises ValueError unless the rows are `height` in all.
    """
    rows = iter(rows)
    first = next(rows)
    pixel, image = io.BytesIO(), first[0, :1] if first.shape[2] == 1 else first[:1, :1]
    Image.fromarray(np.ascontiguousarray(image)).save(pixel, "PNG", **(options or {}))
    file.write(pixel.getvalue()[:8])
    for name, content in _chunks(pixel.getvalue()):
        if name == b"IHDR":
            _put(file, name, struct.pack(">II", width, height) + content[8:])
        elif name == b"IDAT":
            for packed in _packed(_filtered(chain([first], rows)), height):
                _put(file, name, packed)
        else:
            _put(file, name, content)


def _packed(blocks: Iterable[np.ndarray], height: int) -> Iterator[bytes]:
    """The stream of zlib, in chunks. ValueError unless the rows of the blocks are `height`."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)  # as Pillow has it
    ready, written = bytearray(), 0
    for block in blocks:
        ready += packer.compress(block.data)
        written += len(block)
        while len(ready) >= CHUNK:
            yield bytes(ready[:CHUNK])
            del ready[:CHUNK]
    if written != height:
        raise ValueError(f"{written} rows were written of a picture that has {height}.")
    yield bytes(ready) + packer.flush()


def _filtered(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The filtered bytes, [R, 1 + B], of some rows at a time."""
    above: np.ndarray | None = None
    for part in parts:
        pixel = part.itemsize * part.shape[2]  # bytes
        for top in range(0, len(part), step := max(1, BLOCK // (pixel * part.shape[1]))):
            rows = np.ascontiguousarray(part[top : top + step])
            if rows.itemsize == 2:
                rows = rows.astype(">u2")
            raw = rows.reshape(len(rows), -1).view(np.uint8)
            above = np.zeros_like(raw[0]) if above is None else above
            yield _best(raw, np.concatenate([above[None], raw[:-1]]), pixel)
            above = raw[-1]


def _best(raw: np.ndarray, above: np.ndarray, pixel: int) -> np.ndarray:
    """[R, 1 + B] of raw [R, B] and what is above it: the number of a filter, and what it leaves.

    Of the five, in each row the one that leaves the smallest sum, as the specification advises.
    """
    left, corner = np.zeros_like(raw), np.zeros_like(raw)
    left[:, pixel:], corner[:, pixel:] = raw[:, :-pixel], above[:, :-pixel]
    mean = (left & above) + ((left ^ above) >> 1)  # of two bytes, rounded down, without overflow
    guesses = (None, left, above, mean, _paeth(left, above, corner))
    best = np.empty((len(raw), 1 + raw.shape[1]), np.uint8)
    smallest = np.full(len(raw), np.iinfo(np.int64).max)
    for number, guess in enumerate(guesses):
        rest = raw if guess is None else raw - guess
        total = np.minimum(rest, -rest).sum(1, dtype=np.int64)  # of bytes with a sign
        better = total < smallest
        smallest[better] = total[better]
        best[better, 0], best[better, 1:] = number, rest[better]
    return best


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Which of three neighbours is nearest to left + above - corner; the first, if some are."""
    across, down = above.astype(np.int16) - corner, left.astype(np.int16) - corner
    from_left, from_above, from_corner = abs(across), abs(down), abs(across + down)
    nearest = np.where(from_above <= from_corner, above, corner)
    return np.where((from_left <= from_above) & (from_left <= from_corner), left, nearest)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the chunks of a PNG."""
    at = 8
    while at < len(png):
        length, name = struct.unpack_from(">I4s", png, at)
        yield name, png[at + 8 : at + 8 + length]
        at += length + 12


def _put(file: IO[bytes], name: bytes, content: bytes) -> None:
    checksum = zlib.crc32(content, zlib.crc32(name))
    file.write(struct.pack(">I4s", len(content), name) + content + struct.pack(">I", checksum))
