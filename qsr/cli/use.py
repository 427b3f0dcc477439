"""Commands that use models: `qsr demo | evaluate | export | models | info`."""

from __future__ import annotations

import argparse
import os
import platform
import textwrap
from dataclasses import asdict
from pathlib import Path

import torch

from ..course.viz import demo
from ..export.onnx import FORMS, export_onnx
from ..integer import kernels
from ..models import zoo
from ..scores import evaluate
from ..system import native
from ..system.version import __version__
from .arguments import add_model, check_blocks
from .common import Lines, as_json, let_run, remark
from .networks import load_network, refuse_models

# demo, evaluate -----------------------------------------------------------------------------------


def add_demo(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr demo`."""
    let_run(sub, _demo)
    sub.add_argument("--out", default="demo", metavar="FOLDER", help="where pictures go (demo)")


def _demo(args: argparse.Namespace) -> Lines:
    rows, figure = demo(args.out)
    yield as_json({"rows": rows, "figure": str(figure)})
    yield (f"{'scale':5} {'model':22} {'blocks':>6} {'PSNR-Y':>9} {'bytes':>10} {'ms':>8}")
    for row in rows:
        yield (
            f"x{row['scale']:<4} {row['model']:22} {row['blocks'] or '-':>6} "
            f"{row['psnr_y']:6.2f} dB {row['bytes'] or '-':>10} {row['ms']:8.1f}"
        )
    yield f"before and after: {figure}"


def add_evaluate(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr evaluate`."""
    let_run(sub, _evaluate)
    sub.add_argument("sets", nargs="+", metavar="SET", help="Set5, a folder, or 'embedded'")
    add_model(sub)
    sub.add_argument("--scale", type=int, metavar="S", help="for --model bicubic")
    sub.add_argument("--each", action="store_true", help="print every picture")


def _evaluate(args: argparse.Namespace) -> Lines:
    model = args.model
    if model != "bicubic":
        model = zoo.load(model)
        check_blocks(model, args.blocks)
    refuse_models(args.sets, "`evaluate` takes sets of pictures; `--model` takes models")
    results = {}
    for name in args.sets:
        scores = evaluate(model, name, args.scale, args.blocks, progress=True)
        results[name] = vars(scores)
        yield f"{name:12} {scores}"
        if args.each:
            for row in zip(scores.names, scores.psnr_each, scores.ssim_each, strict=True):
                yield "  {:20} {:.3f} dB / {:.4f}".format(*row)
    yield as_json({"model": args.model, "blocks": args.blocks, "sets": results})


# export -------------------------------------------------------------------------------------------


def add_export(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr export`."""
    let_run(sub, _export)
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


def _export(args: argparse.Namespace) -> Lines:
    output = Path(args.output)
    if output.suffix != ".onnx":
        raise ValueError(f"{output} has the suffix {output.suffix!r}; ONNX files end in .onnx.")
    model = load_network(args.model).eval() if Path(args.model).is_dir() else zoo.load(args.model)
    check_blocks(model, args.blocks)
    comparison = export_onnx(
        model,
        output,
        args.blocks,
        form=args.form,
        check=not args.no_check,
        overwrite=args.overwrite,
    )
    size = output.stat().st_size
    yield as_json({"file": str(output), "bytes": size, "form": args.form, **asdict(comparison)})
    yield f"{output}  {size:,} bytes, {args.form}"
    yield from (f"  {line}" for line in comparison.lines())
    for line in comparison.differ:
        remark(f"qsr: {line} Use --form plain there.")


# models, info -------------------------------------------------------------------------------------


def add_models(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr models`."""
    let_run(sub, _models)


def _models(args: argparse.Namespace) -> Lines:
    cards = [zoo.card(name) for name in zoo.names()]
    yield as_json(cards)
    for card in cards:
        yield f"{card['name']}  x{card['scale']}  {card['bits']} bits  {card['bytes']:,} bytes"
        for depth, scores in card["scores"].items():
            row = "  ".join(
                f"{name} {psnr:.2f}/{ssim:.4f}" for name, (psnr, ssim) in scores.items()
            )
            yield f"  {depth:>2} blocks  {row}"
        yield textwrap.fill(card["training"], 98, initial_indent="  ", subsequent_indent="  ")
        yield f"  sha256 {card['sha256']}"


def add_info(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr info`."""
    let_run(sub, _info)


def _info(args: argparse.Namespace) -> Lines:
    status = native.load()
    facts = native.facts()
    report = {
        "qsr": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "native": status.how,
        "library": status.path,
        "reason": status.reason,
        "advice": status.advice,
        "compiler": torch.ops.qsr_native.compiler() if status.native else "",
        "cpu": [name for name, there in facts.features.items() if there] if facts else [],
        "kernels": {op: kernels.available(op) for op in kernels.NATIVE_OPS},
        "cuda": status.cuda or "no CUDA kernels: torch without CUDA, or no toolkit",
        "models": zoo.names(),
        "data": os.environ.get("QSR_DATA", "QSR_DATA is not set"),
    }
    yield as_json(report)
    for name, value in report.items():
        if isinstance(value, dict):
            value = "; ".join(f"{key}: {', '.join(names)}" for key, names in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(value)
        if value:
            yield f"{name:9} {value}"
