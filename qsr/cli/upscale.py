"""The options of `qsr upscale`, without torch, so that help is there at once; `enlarge` works."""

from __future__ import annotations

import argparse

from ..images.formats import DECODER_BYTES, DEFAULT_MEMORY, ENCODER_BYTES
from .arguments import add_model
from .common import Lines, let_run

LEAST_MEMORY = 0.25  # GB; with less, what Python and PyTorch do beside the plan would show


def add_upscale(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr upscale`."""
    let_run(sub, _upscale, json=False)
    sub.add_argument(
        "inputs", nargs="+", metavar="IN", help="pictures or folders of pictures; - is stdin"
    )
    sub.add_argument(
        "output", metavar="OUT", help="a picture for one IN, else a folder; - is stdout"
    )
    blocks = add_model(sub)
    blocks.add_argument(
        "--seconds",
        type=float,
        metavar="N",
        help="the deepest network that is done with a picture in N seconds, as measured on a "
        "sample of it, and say which; measuring comes on top",
    )
    names = sub.add_argument_group("names", "of pictures in a folder OUT")
    names.add_argument(
        "--suffix", default="", metavar="TEXT", help="put to each name: a.jpg becomes aTEXT.jpg"
    )
    names.add_argument(
        "--format",
        default="",
        choices=["png", "jpg", "webp"],
        help="of all pictures (that of each, png where that is read only), and of stdout (png)",
    )
    names.add_argument(
        "--recursive", action="store_true", help="folders below a folder too, kept as a tree in OUT"
    )
    names.add_argument(
        "--shard",
        default="1/1",
        metavar="K/N",
        help="do the K-th of N equal shares of the pictures: one task of a job array",
    )
    existing = sub.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    existing.add_argument(
        "--skip-existing", action="store_true", help="leave out what is there (resume a folder)"
    )
    sub.add_argument(
        "--memory",
        type=float,
        default=DEFAULT_MEMORY,
        metavar="GB",
        help=f"working memory, {LEAST_MEMORY:g} or more, beside the decoded picture; larger "
        f"pictures are done in strips. What is held whole is taken from it: {_whole()} "
        f"({DEFAULT_MEMORY:g})",
    )
    sub.add_argument(
        "--strip-metadata",
        action="store_true",
        help="leave out resolution (dpi), EXIF, XMP, IPTC and texts, copyright among them; without "
        "this they are kept where the format of OUT holds them (EXIF upright, without thumbnail). "
        "The colour profile is always kept",
    )
    sub.epilog = (
        "Exit codes: 0 all was done, 1 some pictures of several failed, 2 wrong use or the only "
        "picture failed, 130 interrupted."
    )


def _upscale(args: argparse.Namespace) -> Lines:
    from .enlarge import run

    return run(args)


def _whole() -> str:
    """What can't be done row by row, for --help."""
    read, written = (
        ", ".join(f"{kind} {size}" for kind, size in sizes.items() if size)
        for sizes in (DECODER_BYTES, ENCODER_BYTES)
    )
    return f"for each pixel of IN by its decoder ({read} bytes), of OUT by its encoder ({written})"
