"""The options of commands that use models: `qsr upscale | demo | evaluate | export | bench | ...`.

Without torch, so that help is there at once: `enlarge`, `use` and `bench` do the work.
"""

from __future__ import annotations

import argparse

from ..export import FORMS
from ..images.formats import DECODER_BYTES, DEFAULT_MEMORY, ENCODER_BYTES
from .arguments import add_model
from .common import later, let_run

BENCH_PRESETS = ["quantsr-c-x4-w4a4", "quantsr-c-x4-w2a2"]
LEAST_MEMORY = 0.25  # GB; with less, what Python and PyTorch do beside the plan would show

# upscale ------------------------------------------------------------------------------------------


def add_upscale(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr upscale`."""
    let_run(sub, later("enlarge.run_upscale"), json=False)
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


def _whole() -> str:
    """What can't be done row by row, for --help."""
    read, written = (
        ", ".join(f"{kind} {size}" for kind, size in sizes.items() if size)
        for sizes in (DECODER_BYTES, ENCODER_BYTES)
    )
    return f"for each pixel of IN by its decoder ({read} bytes), of OUT by its encoder ({written})"


# demo, evaluate -----------------------------------------------------------------------------------


def add_demo(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr demo`."""
    let_run(sub, later("use.run_demo"))
    sub.add_argument("--out", default="demo", metavar="FOLDER", help="where pictures go (demo)")


def add_evaluate(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr evaluate`."""
    let_run(sub, later("use.run_evaluate"))
    sub.add_argument("sets", nargs="+", metavar="SET", help="Set5, a folder, or 'embedded'")
    add_model(sub)
    sub.add_argument("--scale", type=int, metavar="S", help="for --model bicubic")
    sub.add_argument("--each", action="store_true", help="print every picture")


# export -------------------------------------------------------------------------------------------


def add_export(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr export`."""
    let_run(sub, later("use.run_export"))
    sub.add_argument("--onnx", action="store_true", required=True, help="the format of OUT")
    sub.add_argument(
        "model",
        metavar="MODEL",
        help="a name from `qsr models`, a .qsr file, or the folder of a run",
    )
    sub.add_argument("output", metavar="OUT", help="the .onnx file")
    sub.add_argument("--blocks", type=int, metavar="N", help="depth: how many blocks (all)")
    sub.add_argument(
        "--form",
        choices=FORMS,
        default="plain",
        help="of quantised layers: plain, right in every engine; qdq, for integer layers in "
        "onnxruntime (8-bit weights, attention), wrong in OpenVINO (plain)",
    )
    sub.add_argument(
        "--no-check", action="store_true", help="do not compare the file in the installed engines"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing file")


# bench --------------------------------------------------------------------------------------------


def add_bench(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr bench`, whose --threads and --json are its own."""
    let_run(sub, later("bench.run_bench"), threads=False, json=False)
    sub.add_argument(
        "what",
        nargs="?",
        choices=["kernel", "layer", "layers", "network", "train"],
        default="network",
        help="layers: packed layers of every kind beside float ones",
    )
    models = sub.add_mutually_exclusive_group()
    models.add_argument("--model", nargs="+", metavar="NAME", help="zoo models, or .qsr files")
    models.add_argument(
        "--preset",
        nargs="+",
        default=BENCH_PRESETS,
        metavar="NAME",
        help=f"networks with random weights ({', '.join(BENCH_PRESETS)})",
    )
    sub.add_argument(
        "--blocks", type=int, metavar="N", help="depth (all; of presets 16, of QuantSR-T 4)"
    )
    sub.add_argument(
        "--device", default="cpu", help="cpu, or cuda: network and kernel beside cuDNN (cpu)"
    )
    sub.add_argument(
        "--size", type=int, metavar="N", help="side of the input (128; train 24; cuda 256)"
    )
    sub.add_argument("--batch", type=int, default=8, metavar="N", help="patches a step (train: 8)")
    sub.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of training (quantised)",
    )
    sub.add_argument(
        "--rounds", type=int, metavar="N", help="turns of each (network and train 5, else 20)"
    )
    sub.add_argument(
        "--threads",
        dest="counts",
        nargs="+",
        type=int,
        default=[1],
        metavar="N",
        help="one or several numbers of CPU threads (1)",
    )
    sub.add_argument(
        "--peers", nargs="+", default=["all"], metavar="NAME", help="all, none or names (all)"
    )
    sub.add_argument("--json", dest="file", metavar="FILE", help="also write all numbers there")
    sub.add_argument(
        "--steps",
        action="store_true",
        help="time each step of the plan of --model FILE, a packed network of your own",
    )
    sub.add_argument(
        "--plot", metavar="FILE.png", help="also draw networks, the zoo's depths among them"
    )
    sub.add_argument(
        "--redraw",
        metavar="FILE.json",
        help="measure nothing: draw what --json kept again, with today's model cards (--plot)",
    )
    sub.add_argument(
        "--peer-onnx",
        nargs="+",
        metavar="FILE.onnx",
        help="other networks in OpenVINO, float and int8: quality and time of all beside ours",
    )
    sub.add_argument(
        "--data", default="Set5", metavar="SET", help="with --peer-onnx: what is scored (Set5)"
    )


# models, info -------------------------------------------------------------------------------------


def add_models(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr models`."""
    let_run(sub, later("use.run_models"))


def add_info(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr info`."""
    let_run(sub, later("use.run_info"))
    sub.add_argument(
        "--clean", action="store_true", help="remove what qsr has compiled into its cache instead"
    )


# grade --------------------------------------------------------------------------------------------


def add_grade(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr grade`."""
    let_run(sub, later("grade.run_grade"), threads=False)
    sub.add_argument(
        "folder",
        metavar="FOLDER",
        help="of submissions: a folder for each student, or a notebook for each",
    )
    sub.add_argument(
        "--out",
        default="grades.csv",
        metavar="FILE",
        help="the table; feedback lies beside it (%(default)s)",
    )
    sub.add_argument(
        "--key",
        required=True,
        metavar="FILE",
        help="seed and points, which students do not have; written if it is not there, with a "
        "point for each exercise of the notebooks in FOLDER",
    )
    sub.add_argument("--seconds", type=float, metavar="N", help="for one exercise (30)")
    sub.add_argument("--memory", type=float, metavar="GB", help="for one student (8)")
    sub.add_argument("--jobs", type=int, metavar="N", help="students at a time (all processors)")
