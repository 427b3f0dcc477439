"""The command line: `qsr upscale | train | evaluate | pack | export | bench | ...`.

Bad input gives one line on stderr and exit code 2; Ctrl-C exits with 130, SIGTERM with 143. Numbers
go to stdout, as text or with `--json`; progress and remarks go to stderr. A command's module is
imported when the command is asked for, and torch when it runs: help is there at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from tqdm.auto import tqdm

from ..system.signals import Stopped, answered_by, stop
from ..system.version import __version__
from .common import Failed, Json, add_commands, complain, printable

COMMANDS = {  # name: the module with its add_NAME, and what it does
    "upscale": ("options", "Enlarge pictures, or all pictures of folders."),
    "demo": ("options", "Enlarge the bundled photograph with every model and depth."),
    "evaluate": ("options", "Score a model on test sets."),
    "train": ("making", "Train a network; the same call resumes a stopped run."),
    "convert": ("making", "Make a full-precision network of published EDSR-baseline weights."),
    "pack": (
        "making",
        "Pack a trained network into a small .qsr file; full precision as float16.",
    ),
    "export": ("options", "Write a model as ONNX, for pictures of any size."),
    "data": ("making", "List sets of pictures, or pack some into one file."),
    "bench": ("options", "Time kernels, a layer, or networks beside other engines."),
    "reproduce": ("tables", "Compute a table or a figure of the paper."),
    "grade": ("options", "Grade a folder of notebooks that students handed in."),
    "models": ("options", "List the models that come with qsr."),
    "info": ("options", "Say how qsr runs on this machine."),
    "completion": ("shell", "Print what completes these commands in bash, zsh or fish."),
    "man": ("shell", "Print the manual page."),
}
MAY_BE_EMPTY = ("suffix", "format")  # texts that are put to a name
OUT_OF_MEMORY = "out of memory; lower --memory (upscale), or --patch or --batch (train)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started this, as daemons do and `>&-`
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115, for as long as we run
    argv = sys.argv[1:] if argv is None else argv
    asked = [arg for arg in argv if arg in COMMANDS][:1]
    args = parser(asked).parse_args(argv)
    with answered_by(stop):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        _check_empty(args)
        if args.threads is not None:
            _set_threads(args.threads)
        for line in args.run(args):
            if isinstance(line, Json) == args.json:
                line = printable(line, sys.stdout.encoding)
                tqdm.write(line, file=sys.stdout)  # past a progress bar, if there is one
        sys.stdout.flush()
        return 0
    except Failed as error:
        return error.code
    except BrokenPipeError:  # `qsr models | head` has seen enough; nothing to flush at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, OSError) as error:
        complain(error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        complain(OUT_OF_MEMORY)
    except Stopped as signal:
        complain(signal)
        return signal.code
    return 2


def _check_empty(args: argparse.Namespace) -> None:
    """Raise ValueError for a name that is "": to a path that is the folder where one is, whose
    pictures nobody asked to enlarge or to overwrite.
    """
    for name, value in vars(args).items():
        values = value if isinstance(value, list) else [value]
        if "" in values and name not in MAY_BE_EMPTY:
            raise ValueError(
                f"`{name}` is empty, as a variable of the shell is that was never set; name a file "
                "or folder."
            )


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    import torch  # what raised this has imported it

    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return memory or "allocate memory" in str(error)


def _set_threads(threads: int) -> None:
    import torch

    from ..system.machine import check_threads

    check_threads(threads, "--threads")
    torch.set_num_threads(threads)


def parser(commands: Iterable[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of those that are named."""
    whole = argparse.ArgumentParser(prog="qsr", description="Low-bit super-resolution (QuantSR).")
    whole.add_argument("--version", action="version", version=f"qsr {__version__}")
    whole.set_defaults(threads=None, json=False)  # for commands that have no such option
    subs = add_commands(whole, {name: help for name, (_, help) in COMMANDS.items()})
    for name in commands:
        module = import_module(f"qsr.cli.{COMMANDS[name][0]}")
        getattr(module, f"add_{name}")(subs[name])
    return whole
