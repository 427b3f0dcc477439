"""The packed format: integer codes as bit planes in 64-bit words.

`docs/packed-format.md` defines it; in one line: plane i holds bit i of the codes, 64 channels to a
word, two's complement, so that code 0 is the all-zero word and a dot product is
sum_ij s_i s_j 2^(i+j) popcount(a_i & w_j).

`BitPlanes` is a tensor of words that knows what it holds. `pack_codes` and `unpack_codes` here are
the plain version in PyTorch, which says what right is; `qsr.kernels` has the fast one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..quantizer import QuantSpec

FORMAT_VERSION = 1
WORD_BITS = 64


@dataclass(frozen=True)
class BitPlanes:
    """Packed codes. words: int64 [N, H, W, groups, bits, ceil(channels / groups / 64)].

    Raises ValueError (shape) or TypeError (dtype) on construction if the words do not fit.
    """

    words: Tensor
    signed: bool
    channels: int  # of all groups together

    def __post_init__(self) -> None:
        if self.words.dtype != torch.int64:
            raise TypeError(f"`words` is {self.words.dtype}; packed codes are int64 words.")
        shape = tuple(self.words.shape)
        if self.words.ndim != 6:
            raise ValueError(
                f"`words` has shape {shape}; packed codes are [N, H, W, groups, bits, words]."
            )
        QuantSpec(self.bits, self.signed)  # 1 to 8 bits
        if self.groups < 1 or self.channels < 1 or self.channels % self.groups:
            raise ValueError(
                f"`channels` is {self.channels} in {self.groups} groups; "
                "each group has the same number of channels, at least one."
            )
        expected = words_for(self.channels // self.groups)
        if shape[5] != expected:
            raise ValueError(
                f"`words` has {shape[5]} words a group; {self.channels // self.groups} channels "
                f"need {expected}."
            )

    @property
    def bits(self) -> int:
        return self.words.shape[4]

    @property
    def groups(self) -> int:
        return self.words.shape[3]

    @property
    def spec(self) -> QuantSpec:
        return QuantSpec(self.bits, self.signed)


def check_tail(planes: BitPlanes) -> None:
    """Raise ValueError if a bit beyond the last channel of a group is set.

    Kernels rely on these bits being zero; words that come from a file are checked.
    """
    used = (planes.channels // planes.groups) % WORD_BITS
    if used and (planes.words[..., -1] >> used & ((1 << (WORD_BITS - used)) - 1)).any():
        raise ValueError(
            f"the words have bits set beyond channel {planes.channels // planes.groups}; "
            "they are damaged or packed by another program."
        )


def words_for(channels: int) -> int:
    """Words that hold one plane of `channels` codes.

    >>> words_for(64), words_for(65)
    (1, 2)
    """
    return -(-channels // WORD_BITS)


def check_codes(codes: Tensor, bits: int, signed: bool, groups: int) -> None:
    """Raise ValueError or TypeError unless codes [N, H, W, C] are integers of `bits` bits."""
    spec = QuantSpec(bits, signed)
    if codes.dtype not in (torch.int8, torch.uint8):
        raise TypeError(f"`codes` is {codes.dtype}; codes are int8 or uint8.")
    if codes.ndim != 4:
        raise ValueError(f"`codes` has shape {tuple(codes.shape)}; codes are [N, H, W, channels].")
    if groups < 1 or codes.shape[3] < 1 or codes.shape[3] % groups:
        raise ValueError(
            f"`groups` is {groups} for {codes.shape[3]} channels; it must divide them."
        )
    if codes.numel() and not (spec.qmin <= codes.min() and codes.max() <= spec.qmax):
        raise ValueError(
            f"`codes` reach from {codes.min()} to {codes.max()}; {bits} "
            f"{'signed' if signed else 'unsigned'} bits hold {spec.qmin} to {spec.qmax}."
        )


def pack_codes(codes: Tensor, bits: int, signed: bool, groups: int = 1) -> BitPlanes:
    """Codes [N, H, W, C] (int8 or uint8) -> bit planes, in plain PyTorch.

    >>> codes = torch.tensor([3, -1, 0, -4], dtype=torch.int8).view(1, 1, 1, 4)
    >>> pack_codes(codes, bits=3, signed=True).words.flatten().tolist()
    [3, 3, 10]
    """
    check_codes(codes, bits, signed, groups)
    return BitPlanes(pack_words(codes, bits, groups), signed, codes.shape[3])


def pack_words(codes: Tensor, bits: int, groups: int) -> Tensor:
    """The words of `pack_codes`, without its checks."""
    n, h, w, channels = codes.shape
    per_group = channels // groups
    words = words_for(per_group)
    padded = torch.zeros(n, h, w, groups, words * WORD_BITS, dtype=torch.int64, device=codes.device)
    padded[..., :per_group] = codes.view(n, h, w, groups, per_group).long()
    lanes = padded.view(n, h, w, groups, 1, words, WORD_BITS)
    plane = torch.arange(bits, device=codes.device).view(-1, 1, 1)
    # Bit 63 is the sign of an int64; shifting into it wraps, which is what two's complement wants.
    return (((lanes >> plane) & 1) << torch.arange(WORD_BITS, device=codes.device)).sum(-1)


def unpack_codes(planes: BitPlanes) -> Tensor:
    """Bit planes -> codes [N, H, W, channels], int8 if signed, else uint8."""
    return unpack_words(planes.words, planes.signed, planes.channels)


def unpack_words(words: Tensor, signed: bool, channels: int) -> Tensor:
    """`unpack_codes` of bare words."""
    n, h, w, groups, bits, _ = words.shape
    lanes = (words[..., None] >> torch.arange(WORD_BITS, device=words.device)) & 1
    lanes = lanes.flatten(-2)[..., : channels // groups]  # [N, H, W, groups, bits, per group]
    weight = 2 ** torch.arange(bits, device=words.device)
    if signed:
        weight[-1] = -weight[-1]
    codes = (lanes * weight.view(-1, 1)).sum(-2).view(n, h, w, channels)
    return codes.to(torch.int8 if signed else torch.uint8)
