"""What `qsr upscale` does: picture after picture, and at the end a line of what came of them."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
import warnings
from dataclasses import replace
from itertools import chain
from pathlib import Path

from tqdm.auto import tqdm

from ..backbone import QuantSR
from ..images.formats import DEFAULT_MEMORY
from ..images.metadata import Metadata
from ..images.picture import Picture
from ..images.reading import check_decoder, read
from ..images.writing import check_format, encoder_bytes, write_rows
from ..infer import upscaled_rows
from ..system.errors import first_line
from . import options
from .arguments import check_blocks, check_writable
from .common import Failed, Lines, complain, printable, remark
from .gather import Job, Naming, Source, plan, share
from .networks import Enlarging, load_enlarging, refuse_models
from .pace import Pace
from .pipe import check_standard_output, to_standard_output


def run_upscale(args: argparse.Namespace) -> Lines:
    """`qsr upscale`: a line for each picture that was written."""
    if not args.memory >= options.LEAST_MEMORY:
        raise ValueError(
            f"`--memory` is {args.memory:g} GB; it is {options.LEAST_MEMORY:g} or more. Leave it "
            f"out for {DEFAULT_MEMORY:g}."
        )
    if args.seconds is not None and not args.seconds > 0:
        raise ValueError(f"`--seconds` is {args.seconds:g}; it is more than 0.")
    refuse_models(args.inputs, "`upscale` takes pictures; `--model` takes models")
    todo = plan(args.inputs, args.output, args.recursive, Naming(args.suffix, args.format))
    jobs = share(todo.jobs, args.shard)
    if todo.piped:
        check_standard_output()
        waiting = jobs
    else:
        waiting = _waiting(jobs, args)
    model = load_enlarging(args.model)
    check_blocks(model, args.blocks)
    pace = None
    if args.seconds is not None:

        def thrown_away(picture: Picture, blocks: int, suffix: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                _write(picture, Path(folder, f"sample{suffix}"), model, blocks, args)

        pace = Pace(thrown_away, model.config.depths)
    done = failed = pixels = 0
    start = time.monotonic()
    bar = tqdm(waiting, unit="picture", disable=len(waiting) < 2)
    for source, target in bar:
        bar.set_postfix_str(printable(source.name))
        try:
            height, width = _one(source, target, model, args, pace, todo.piped)
        except BrokenPipeError:  # who reads standard output has seen enough
            raise
        except (ValueError, OSError) as error:  # one bad picture does not stop a folder
            failed += 1
            named = isinstance(error, OSError) or str(source) in str(error)
            complain(error if named else f"{source}: {error}")
        else:
            done += 1
            pixels += height * width
            if not todo.piped:
                yield f"{target}  {width} x {height}"
    if str(todo):
        remark(f"qsr: {todo}")
    if len(jobs) > 1:
        speed = pixels / 1e6 / (time.monotonic() - start)
        counts = f"{done} done, {len(jobs) - len(waiting)} skipped, {failed} failed"
        remark(f"qsr: {counts}{f'; {speed:.2g} megapixels written a second' if done else ''}")
    if failed:
        raise Failed(1 if len(waiting) > 1 else 2)


def _waiting(jobs: list[Job], args: argparse.Namespace) -> list[Job]:
    """The jobs without those that are done. Raises ValueError if nobody said what to do of them."""
    there = [target for _, target in jobs if target.exists()]
    if there and not args.overwrite and not args.skip_existing:
        raise ValueError(
            f"{there[0]} exists{f' (and {len(there) - 1} more)' if there[1:] else ''}; nothing "
            "was done. Pass --overwrite or --skip-existing, or name another output."
        )
    return [job for job in jobs if args.overwrite or job[1] not in there]


def _one(
    source: Source,
    target: Path,
    model: Enlarging,
    args: argparse.Namespace,
    pace: Pace | None,
    piped: bool,
) -> tuple[int, int]:
    """One picture -> (height, width) of the new one. What it needed is free when this returns."""
    check_decoder(source, args.memory)
    picture = _read(source)
    if args.strip_metadata:
        picture = replace(picture, about=Metadata())
    scale, blocks = model.config.scale, args.blocks
    check_format(picture, target, scale)  # what OUT can't hold is told before the work
    if not piped:
        check_writable(target.parent)
    if pace is not None:
        blocks, seconds = pace.deepest(picture, target.suffix, args.seconds)
        remark(f"qsr: {source}: {blocks} blocks, about {seconds:.2g} s")
    with to_standard_output(target) if piped else contextlib.nullcontext(target) as place:
        _write(picture, place, model, blocks, args)
    height, width = picture.size
    return scale * height, scale * width


def _write(
    picture: Picture,
    place: Path,
    model: Enlarging,
    blocks: int | None,
    args: argparse.Namespace,
) -> None:
    """Enlarge a picture into a file."""
    scale = model.config.scale
    held = encoder_bytes(picture, place, scale)
    rows = upscaled_rows(
        picture, model, blocks=blocks, memory=args.memory, progress=True, held=held
    )
    first = next(rows)  # what is refused is so before a folder is made
    place.parent.mkdir(parents=True, exist_ok=True)
    write_rows(chain([first], rows), place, picture, scale, overwrite=args.overwrite)
    if not isinstance(model, QuantSR):
        model.release()  # or the next picture is decoded beside it


def _read(source: Source) -> Picture:
    """`read`, which warns of what it could not use: here in one line."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        picture = read(source)
    for warning in told:
        remark(f"qsr: {source}: {first_line(warning.message)}")
    return picture
