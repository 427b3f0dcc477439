"""Small networks that others wrote and trained, in PyTorch: to try the library on what it was not
made for.

RLFN (Kong et al., CVPR Workshops 2022) and SMFANet (Zheng et al., ECCV 2024), written down here
from their published ONNX graphs. The weights are not part of this repository: `load("rlfn-s")`
reads rlfn-s-x4.onnx from the folder that the environment variable QSR_PEERS names. Sizes are read
off the weights, so a file is all that describes a network.

All take lr, float RGB [N, 3, H, W] in [0, 1], and give sr [N, 3, 4 H, 4 W]. RLFN takes pictures of
15 pixels a side and more, SMFANet multiples of 8.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 4

# RLFN ---------------------------------------------------------------------------------------------


class SpatialAttention(nn.Module):
    """Which pixels matter, 0 to 1, from a coarse look: times the features."""

    def __init__(self, features: int, narrow: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, narrow, 1)
        self.conv_f = nn.Conv2d(narrow, narrow, 1)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=2)
        self.conv3 = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.conv4 = nn.Conv2d(narrow, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = self.conv1(x)
        far = self.conv3(F.max_pool2d(self.conv2(near), 7, 3))
        far = F.interpolate(far, size=x.shape[2:], mode="bilinear")
        return x * torch.sigmoid(self.conv4(far + self.conv_f(near)))


class RLFNBlock(nn.Module):
    """Three convolutions around a shortcut, one that mixes channels, and the attention."""

    def __init__(self, features: int, narrow: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(features, features, 3, padding=1)
        self.c2_r = nn.Conv2d(features, features, 3, padding=1)
        self.c3_r = nn.Conv2d(features, features, 3, padding=1)
        self.c5 = nn.Conv2d(features, features, 1)
        self.esa = SpatialAttention(features, narrow)
        self.act = nn.LeakyReLU(0.05)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.c1_r(x))
        y = self.act(self.c2_r(y))
        y = self.act(self.c3_r(y))
        return self.esa(self.c5(y + x))


class RLFN(nn.Module):
    """Residual Local Feature Network; 52 features, or 48 in its small form. Works on 0 to 255."""

    def __init__(self, features: int = 52, narrow: int = 16, blocks: int = 6) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, features, 3, padding=1)
        self.blocks = nn.Sequential(*(RLFNBlock(features, narrow) for _ in range(blocks)))
        self.conv_2 = nn.Conv2d(features, features, 3, padding=1)
        self.upsampler = nn.Conv2d(features, 3 * SCALE**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, lr: Tensor) -> Tensor:
        first = self.conv_1(255 * lr)
        deep = self.conv_2(self.blocks(first))
        return self.shuffle(self.upsampler(deep + first)) / 255

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> RLFN:
        """The network of these weights, by the names of the ONNX files."""
        narrow, features = weights["block_1.esa.conv1.weight"].shape[:2]
        count = sum(name.endswith("c5.bias") for name in weights)
        own = {"upsampler.0": "upsampler"}
        own |= {f"block_{i + 1}": f"blocks.{i}" for i in range(count)}
        return _filled(cls(features, narrow, count), weights, own)


# SMFANet ------------------------------------------------------------------------------------------


class DetailEstimation(nn.Module):
    """Local detail: a depthwise convolution between two that mix channels."""

    def __init__(self, features: int) -> None:
        super().__init__()
        wide = 2 * features
        self.conv_0 = nn.Sequential(
            nn.Conv2d(features, wide, 3, padding=1, groups=features), nn.Conv2d(wide, wide, 1)
        )
        self.act = nn.GELU()
        self.conv_1 = nn.Conv2d(wide, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_1(self.act(self.conv_0(x)))


class FeatureAggregation(nn.Module):
    """Half of the features is scaled by a coarse look and their variance, half looks at detail."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear_0 = nn.Conv2d(features, 2 * features, 1)
        self.linear_1 = nn.Conv2d(features, features, 1)
        self.linear_2 = nn.Conv2d(features, features, 1)
        self.lde = DetailEstimation(features)
        self.dw_conv = nn.Conv2d(features, features, 3, padding=1, groups=features)
        self.pool = nn.MaxPool2d(8)
        self.gelu = nn.GELU()
        self.enlarge = nn.UpsamplingNearest2d(scale_factor=8)
        self.alpha = nn.Parameter(torch.ones(1, features, 1, 1))
        self.belt = nn.Parameter(torch.zeros(1, features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        detail, coarse = self.linear_0(x).chunk(2, dim=1)
        variance = coarse.var((-2, -1), keepdim=True)
        mixed = self.linear_1(self.dw_conv(self.pool(coarse)) * self.alpha + variance * self.belt)
        return self.linear_2(coarse * self.enlarge(self.gelu(mixed)) + self.lde(detail))


class PartialConvolution(nn.Module):
    """A feed-forward part whose 3x3 convolution sees a quarter of its channels."""

    def __init__(self, features: int, hidden: int, seen: int) -> None:
        super().__init__()
        self.sizes = (seen, hidden - seen)
        self.conv_0 = nn.Conv2d(features, hidden, 1)
        self.conv_1 = nn.Conv2d(seen, seen, 3, padding=1)
        self.conv_2 = nn.Conv2d(hidden, features, 1)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        seen, rest = self.act(self.conv_0(x)).split(self.sizes, dim=1)
        return self.conv_2(torch.cat([self.act(self.conv_1(seen)), rest], dim=1))


class SMFABlock(nn.Module):
    """Aggregation, then the feed-forward part; each on features of length 1, around a shortcut."""

    def __init__(self, features: int, hidden: int, seen: int) -> None:
        super().__init__()
        self.smfa = FeatureAggregation(features)
        self.pcfn = PartialConvolution(features, hidden, seen)

    def forward(self, x: Tensor) -> Tensor:
        x = self.smfa(F.normalize(x)) + x
        return self.pcfn(F.normalize(x)) + x


class SMFANet(nn.Module):
    """Self-Modulation Feature Aggregation Network; SMFANet+ is wider and deeper."""

    def __init__(
        self, features: int = 36, blocks: int = 8, hidden: int = 72, seen: int = 18
    ) -> None:
        super().__init__()
        self.to_feat = nn.Conv2d(3, features, 3, padding=1)
        self.feats = nn.Sequential(*(SMFABlock(features, hidden, seen) for _ in range(blocks)))
        self.to_img = nn.Conv2d(features, 3 * SCALE**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, lr: Tensor) -> Tensor:
        first = self.to_feat(lr)
        return self.shuffle(self.to_img(self.feats(first) + first))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> SMFANet:
        """The network of these weights, by the names of the ONNX files."""
        hidden, features = weights["feats.0.pcfn.conv_0.weight"].shape[:2]
        seen = len(weights["feats.0.pcfn.conv_1.weight"])
        count = sum(name.endswith("pcfn.conv_0.bias") for name in weights)
        return _filled(cls(features, count, hidden, seen), weights, {"to_img.0": "to_img"})


# Files --------------------------------------------------------------------------------------------

PEERS = {"rlfn": RLFN, "rlfn-s": RLFN, "smfanet": SMFANet, "smfanet-plus": SMFANet}


def folder() -> Path | None:
    """Where the ONNX files are, None if the environment does not say it."""
    root = os.environ.get("QSR_PEERS")
    return Path(root) if root else None


def load(name: str) -> nn.Module:
    """One of `PEERS` with the weights of its ONNX file, in eval mode.

    Raises ValueError if QSR_PEERS is not set, or the file is missing or of another network.
    """
    import onnx

    root = folder()
    path = None if root is None else root / f"{name}-x{SCALE}.onnx"
    if path is None or not path.exists():
        raise ValueError(
            f"there is no {path or name}; set QSR_PEERS to a folder with {name}-x{SCALE}.onnx."
        )
    stored = onnx.load(path).graph.initializer
    weights = {
        tensor.name.removeprefix("n."): torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in stored
        if tensor.name.startswith("n.")
    }
    return PEERS[name].of(weights).eval()


def _filled(net: nn.Module, weights: dict[str, Tensor], names: dict[str, str]) -> nn.Module:
    """`net` with these weights; names: what the beginning of a name becomes."""
    own = {}
    for name, tensor in weights.items():
        theirs = next((start for start in names if name.startswith(f"{start}.")), None)
        own[name if theirs is None else names[theirs] + name[len(theirs) :]] = tensor
    net.load_state_dict(own)
    return net
