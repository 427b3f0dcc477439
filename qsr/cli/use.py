"""What `qsr demo | evaluate | export | models | info` do; their options are in `options`."""

from __future__ import annotations

import argparse
import os
import platform
import textwrap
from dataclasses import asdict
from pathlib import Path

import torch

from ..course.viz import demo
from ..export.onnx import export_onnx
from ..integer import kernels
from ..models import zoo
from ..scores import evaluate
from ..system import native
from ..system.version import __version__
from .arguments import check_blocks
from .common import Lines, as_json, remark
from .networks import load_enlarging, load_network, load_quantsr, refuse_models


def run_demo(args: argparse.Namespace) -> Lines:
    rows, figure = demo(args.out)
    yield as_json({"rows": rows, "figure": str(figure)})
    yield (f"{'scale':5} {'model':22} {'blocks':>6} {'PSNR-Y':>9} {'bytes':>10} {'ms':>8}")
    for row in rows:
        yield (
            f"x{row['scale']:<4} {row['model']:22} {row['blocks'] or '-':>6} "
            f"{row['psnr_y']:6.2f} dB {row['bytes'] or '-':>10} {row['ms']:8.1f}"
        )
    yield f"before and after: {figure}"


def run_evaluate(args: argparse.Namespace) -> Lines:
    model = args.model
    if model != "bicubic":
        model = load_enlarging(model)
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


def run_export(args: argparse.Namespace) -> Lines:
    output = Path(args.output)
    if output.suffix != ".onnx":
        raise ValueError(f"{output} has the suffix {output.suffix!r}; ONNX files end in .onnx.")
    folder = Path(args.model).is_dir()
    model = load_network(args.model).eval() if folder else load_quantsr(args.model)
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


def run_models(args: argparse.Namespace) -> Lines:
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


def run_info(args: argparse.Namespace) -> Lines:
    if args.clean:
        folder, builds, size = native.clean_cache()
        yield as_json({"cache": str(folder), "builds": builds, "bytes": size})
        yield f"{folder}  {builds} builds removed, {size / 1e6:.1f} MB"
        return
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
