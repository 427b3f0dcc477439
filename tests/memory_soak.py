"""What `qsr upscale --memory` takes at its peak, for pictures of 1 to 134 megapixels.

The promise: at most what a picture of one pixel takes, plus the decoded picture, plus 1.25 times
the limit. Each row is a child of its own, whose peak the kernel tells (VmHWM).

    python -m tests.memory_soak                   # 1, 16, 48 and 134 megapixels; about half an hour
    python -m tests.memory_soak 4 --scale 4       # others; --family, --suffix, --memory
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import qsr
from qsr.cli.options import LEAST_MEMORY
from qsr.images.formats import DECODER_BYTES

FAMILIES = {
    "c": lambda scale: qsr.quantsr_c(scale, 4, blocks=1, features=16),
    "t": lambda scale: qsr.quantsr_t(scale, 4, blocks=1, features=12, layers=2, heads=2),
    "float": lambda scale: qsr.srresnet(scale, blocks=1, features=16),
}
CHILD = """
import sys, torch
from pathlib import Path
from qsr.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text()
print(1024 * int(status.split("VmHWM:")[1].split()[0]))
sys.exit(code)
"""


@dataclass(frozen=True)
class Peak:
    """Bytes: of the child, of one that enlarges one pixel, and of the decoded picture."""

    whole: int
    one_pixel: int
    decoded: int
    limit: float

    @property
    def share(self) -> float:
        """What was taken for the limit, as a part of it; 1.25 is promised."""
        return (self.whole - self.one_pixel - self.decoded) / (1e9 * self.limit)


def small_model(folder: Path, scale: int, family: str = "c") -> Path:
    """The file of a network of one block, so that the pictures may be large. family: a key of
    FAMILIES.
    """
    torch.manual_seed(0)
    net = qsr.QuantSR(FAMILIES[family](scale))
    path = folder / f"{family}-x{scale}.qsr"
    if net.config.bits is not None:
        qsr.calibrate(net, torch.rand(1, 3, 16, 16))
        qsr.save(path, qsr.pack(net))
    else:
        qsr.save(path, net)
    return path


def photograph(path: Path, megapixels: float) -> int:
    """Write a picture of 4:3 with slopes and a little noise; returns its decoded bytes."""
    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    width = int(megapixels * 1e6 / height)
    ramp = np.linspace(0, 230, width).astype(np.uint8)
    noise = np.random.default_rng(0).integers(8, size=(64, width, 3), dtype=np.uint8)
    tile = ramp[None, :, None] + noise
    image = Image.new("RGB", (width, height))
    for top in range(0, height, 64):
        image.paste(Image.fromarray(np.roll(tile, 37 * top, axis=1)), (0, top))
    image.save(path, compress_level=1)
    return 3 * height * width


def peak_of(source: Path, target: Path, model: Path, limit: float) -> int:
    """Bytes at the peak of `qsr upscale` in one thread. Raises RuntimeError if it fails."""
    command = ["upscale", source, target, "--model", model, "--memory", limit, "--threads", 1]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, command)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.splitlines()[-1])


def measure(
    folder: Path,
    megapixels: float,
    scale: int,
    limit: float,
    suffix: str = ".png",
    family: str = "c",
) -> Peak:
    """The peaks of one picture, written in the format of `suffix`."""
    model = small_model(folder, scale, family)
    source, target, pixel = folder / "lr.png", folder / f"sr{suffix}", folder / "pixel.png"
    Image.new("RGB", (1, 1)).save(pixel)
    decoded = photograph(source, megapixels)
    try:
        one_pixel = peak_of(pixel, target, model, limit)
        target.unlink()
        return Peak(peak_of(source, target, model, limit), one_pixel, decoded, limit)
    finally:
        target.unlink(missing_ok=True)


def main() -> int:
    """Print a line for each picture; 1 if one took more than is promised."""
    parser = argparse.ArgumentParser(description="Peaks of memory of `qsr upscale --memory`.")
    parser.add_argument("megapixels", nargs="*", type=float, default=[1, 16, 48, 134])
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--memory", type=float, help="GB (the least for that picture)")
    parser.add_argument("--suffix", default=".png")
    parser.add_argument("--family", choices=FAMILIES, default="c")
    args = parser.parse_args()
    worst = 0.0
    for megapixels in args.megapixels:
        least = max(LEAST_MEMORY, math.ceil(DECODER_BYTES["PNG"] * megapixels / 10) / 100)
        limit, began = args.memory or least, time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            peak = measure(Path(folder), megapixels, args.scale, limit, args.suffix, args.family)
        print(
            f"{megapixels:g} megapixels x{args.scale} {args.suffix}, {args.family}, --memory "
            f"{limit:g}: peak {peak.whole / 1e9:.2f} GB; one pixel {peak.one_pixel / 1e9:.2f}, "
            f"decoded {peak.decoded / 1e9:.2f}, so {peak.share:.2f} of the limit; "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
        worst = max(worst, peak.share)
    print(f"worst: {worst:.2f} of the limit; 1.25 is promised")
    return int(worst > 1.25)


if __name__ == "__main__":
    sys.exit(main())
