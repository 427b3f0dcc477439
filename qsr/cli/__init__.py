"""The command line: `qsr upscale | demo | train | evaluate | pack | export | data | bench | ...`.

Bad input gives one line on stderr and exit code 2; Ctrl-C exits with 130. Numbers go to stdout, as
text or with `--json`; progress and remarks go to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from ..system.version import __version__
from .bench import add_bench
from .common import complain
from .reproduce import add_reproduce
from .train import add_data, add_pack, add_train
from .use import add_demo, add_evaluate, add_export, add_info, add_models, add_upscale

OUT_OF_MEMORY = "out of memory; lower --memory (upscale), or --patch or --batch (train)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.threads is not None:
            _set_threads(args.threads)
        return args.run(args) or 0
    except (ValueError, TypeError) as error:
        complain(error)
    except BrokenPipeError:  # `qsr models | head` has seen enough; nothing to flush at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        complain(error)
    except MemoryError:
        complain(OUT_OF_MEMORY)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        complain(OUT_OF_MEMORY)
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return 2


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f"`--threads` is {threads}; it is 1 or more. Leave it out to use all.")
    torch.set_num_threads(threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qsr", description="Low-bit super-resolution (QuantSR).")
    parser.add_argument("--version", action="version", version=f"qsr {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run, help: str, *, numbers: bool = False, threads: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run, threads=None)
        if threads:
            sub.add_argument("--threads", type=int, metavar="N", help="CPU threads (all)")
        if numbers:
            sub.add_argument("--json", action="store_true", help="print numbers as JSON")
        return sub

    add_upscale(command)
    add_demo(command)
    add_evaluate(command)
    add_train(command)
    add_pack(command)
    add_export(command)
    add_data(command)
    add_bench(command)
    add_reproduce(command)
    add_models(command)
    add_info(command)
    return parser
