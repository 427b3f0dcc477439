"""`python -m tests.tuned N`: a network that others wrote at 4 bits, tuned, scored, recorded.

The network comes from the folder QSR_PEERS (`peers`), pictures from QSR_DATA. The 3x3 convolutions
of its body get 4 bits; what `qsr.sensitivity` names as layers that cost most and compute little,
the 1x1 convolutions and the last one, 8; the first layer and the attention stay in float. The
records were made by

    N --steps 7500 --match 0.1 --precision bfloat16                w4a4, tuned
    rlfn-s ... as above, and then
      --steps 1500 --seed 2 --learning-rate 6e-4 --distill 0.5 --init FILE       stage 2 of it
      --steps 3000 --seed 3 (else as stage 2)                                    stage 3
      --steps 3000 --seed 4 --eight conv_2 (else as stage 2)    conv_2 at 8 bits from here on
    N --bits 8 --steps 0 --equalize --skip '*.c5' upsampler        w8a8, calibrated only

The figure docs/images/curve.png has what the fourth stage with --attention gave, packed:
`--steps 0 --init FILE --refined --eight conv_2 --attention --pack rlfn-s-x4-w4a4.qsr --out FOLDER`.

A run can be stopped and called again (`--folder`). Pictures to choose the best state by are those
that the training sets hold back; in a run the test sets choose nothing, they are only scored. The
record, in docs/results/tuned, says all that the numbers depend on.
"""

import argparse
import copy
import dataclasses
import json
import platform
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import qsr
from qsr.runs.tune import recipe, tune
from tests import peers

RESULTS = Path(__file__).parent.parent / "docs/results/tuned"
SETS = ("BSDS500-test", "BSDS500-train", "DIV2K-test-LRx4", "General100", "T91", "photos")
TESTS = ("Set5", "Set14", "B100")
FLOAT = {"rlfn": ["conv_1", "blocks.*.esa"], "smfanet": ["to_feat"]}
ATTENTION = "blocks.*.esa"  # of RLFN: with --attention at 8 bits too, and then on integers
EIGHT = {"rlfn": ["*.c5", "upsampler"], "smfanet": ["to_img"]}


def student_of(
    teacher: torch.nn.Module,
    name: str,
    bits: int,
    skip: Sequence[str],
    eight: Sequence[str],
    attention: bool = False,
) -> torch.nn.Module:
    """The quantised copy that the records are about; eight: more layers with 8 bits."""
    family = name.split("-")[0]
    more = [f"{ATTENTION}.*"] if attention else []
    widths = {pattern: 8 for pattern in (*EIGHT[family], *eight, *more)} | {"*": bits}
    left = [pattern for pattern in FLOAT[family] if not (attention and pattern == ATTENTION)]
    return qsr.quantize(teacher, widths, skip=[*left, *skip], per_channel=True)


def refine(student: torch.nn.Module, names: Sequence[str], bits: int) -> None:
    """Layers that were trained at `bits` go on with the ranges of these, in the steps of 8 bits."""
    for name in names:
        layer = student.get_submodule(name)
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            coarse = dataclasses.replace(quantizer.spec, bits=bits)
            quantizer.step_size.data *= coarse.qmax / quantizer.spec.qmax


def scores(net: torch.nn.Module) -> dict[str, dict[str, float]]:
    """PSNR-Y and SSIM-Y on the test sets."""
    found = {}
    for name in TESTS:
        score = qsr.evaluate(net, name, peers.SCALE)
        found[name] = {"psnr_y": round(score.psnr_y, 4), "ssim_y": round(score.ssim_y, 4)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=peers.PEERS)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8000, help="0: calibrated only")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--match", type=float, default=0.0)
    parser.add_argument("--distill", type=float, default=1.0)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--init", type=Path, help="tuned weights of an earlier run to go on from")
    parser.add_argument("--equalize", action="store_true", help="powers of two first")
    parser.add_argument("--skip", nargs="*", default=[], help="more layers to leave in float")
    parser.add_argument("--eight", nargs="*", default=[], help="more layers with 8 bits")
    parser.add_argument("--attention", action="store_true", help="of RLFN at 8 bits too")
    parser.add_argument(
        "--refined", action="store_true", help="--init had the layers of --eight at 8 bits already"
    )
    parser.add_argument("--pack", type=Path, metavar="FILE.qsr", help="also write it packed")
    parser.add_argument("--label", help="of the record; default: NAME-x4-wNaN")
    parser.add_argument("--max-seconds", type=float)
    parser.add_argument("--folder", help="of checkpoints; default: runs/tuned/NAME")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    label = args.label or f"{args.name}-x{peers.SCALE}-w{args.bits}a{args.bits}"
    folder = args.folder or f"runs/tuned/{label}"
    teacher = peers.load(args.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small pictures are left out
        pictures = qsr.Patches(SETS, peers.SCALE, args.patch, args.batch, args.seed)
        chosen = qsr.Patches(SETS, peers.SCALE, 48, 16, args.seed).batch(0)[0]
    start = qsr.equalize(teacher, chosen) if args.equalize else teacher
    student = student_of(start, args.name, args.bits, args.skip, args.eight, args.attention)
    record: dict = {"network": args.name, "scale": peers.SCALE, "bits": args.bits}
    record |= {"equalized": args.equalize, "left_in_float": args.skip}
    began = time.monotonic()
    calibrated = copy.deepcopy(student)  # by a batch, as `tune` does it, or more
    qsr.calibrate(calibrated, pictures.batch(0)[0] if args.steps else chosen, method="output")
    record["calibrated"] = scores(calibrated)
    print(
        label, "calibrated", record["calibrated"], f"{time.monotonic() - began:.0f} s", flush=True
    )
    if args.init is not None:
        student.load_state_dict(calibrated.state_dict())  # what the file does not have
        student.load_state_dict(load_file(args.init), strict=not args.attention)
        if not args.refined:
            refine(student, args.eight, args.bits)
        record["init"] = scores(student) | {"file": args.init.name}
    if args.steps:
        config = dataclasses.replace(
            recipe(args.steps),
            learning_rate=args.learning_rate,
            distill=args.distill,
            precision=args.precision,
        )
        tuned = tune(
            student, teacher, pictures, folder=folder, config=config, match=args.match,
            max_seconds=args.max_seconds,
        )  # fmt: skip
        print(tuned, flush=True)
        if not tuned.finished:
            raise SystemExit(f"not finished; the same command goes on from {folder}")
        record["tuned"] = scores(student)
        record["against_float"] = dataclasses.asdict(tuned)
        record["training"] = {**dataclasses.asdict(config), "match": args.match}
        state = {k: v.contiguous() for k, v in student.state_dict().items()}
        save_file(state, Path(folder) / f"{label}.safetensors")
    if args.pack is not None:
        qsr.save(args.pack, qsr.pack(student if args.steps or args.init else calibrated))
    record["data"] = {"sets": SETS, **pictures.identity}
    record["float"] = scores(teacher)
    record["layers"] = {
        name: [m.weight_quantizer.bits, m.input_quantizer.bits]
        for name, m in student.named_modules()
        if hasattr(m, "weight_quantizer")
    }
    record["machine"] = {"processor": platform.processor() or platform.machine(), "threads": 1}
    record["torch"] = str(torch.__version__)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{label}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: record.get(k) for k in ("float", "calibrated", "tuned")}, indent=1))


if __name__ == "__main__":
    main()
