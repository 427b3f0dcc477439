"""What `main` and every command share: how a command speaks, and how it gets its parser. No torch.

A command is a function of its parsed arguments that yields lines for stdout, as they come.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module

from tqdm.auto import tqdm

from ..system.errors import first_line

Lines = Iterator[str]


class Json(str):
    """A line that is printed with --json, where no other line is; without, it is not printed."""


class Failed(Exception):
    """Ends a command when what failed has been told already, with an exit code: 2, as for wrong
    use, or 1 if some of several things were done.
    """

    def __init__(self, code: int = 2) -> None:
        super().__init__(code)
        self.code = code


def as_json(data: object) -> Json:
    """Numbers, strings, lists and dicts as they are printed with --json."""
    return Json(json.dumps(data, indent=1))


def printable(line: str, encoding: str | None = None) -> str:
    r"""A line with what an encoding lacks written as an escape: file names may be any bytes.

    >>> printable("caf\udce9", "utf-8"), printable("é", "ascii")
    ('caf\\udce9', '\\xe9')
    """
    encoding = encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def remark(line: str) -> None:
    """One line on stderr."""
    line = printable(line, sys.stderr.encoding)
    tqdm.write(line, file=sys.stderr)  # past a progress bar, if there is one


def complain(what: object) -> None:
    """The first line of an error, or a line of ours, on stderr."""
    if isinstance(what, OSError):
        what = f"{what.filename or 'the system'}: {what.strerror or what}; check that place."
    remark(f"qsr: {first_line(what)}")


def add_commands(
    parent: argparse.ArgumentParser, helps: Mapping[str, str]
) -> dict[str, argparse.ArgumentParser]:
    """Add commands {name: what it does} below a parser -> their parsers, without options yet."""
    commands = parent.add_subparsers(title="commands", metavar="COMMAND", required=True)
    return {
        name: commands.add_parser(name, help=help, description=help) for name, help in helps.items()
    }


def later(place: str) -> Callable[[argparse.Namespace], Lines]:
    """The function "module.name" of this room, imported when it is called, and torch with it."""

    def command(args: argparse.Namespace) -> Lines:
        module, name = place.split(".")
        return getattr(import_module(f"{__package__}.{module}"), name)(args)

    return command


def let_run(
    sub: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], Lines],
    *,
    threads: bool = True,
    json: bool = True,
) -> None:
    """Let a parser run a command, which has the options --threads and --json if asked."""
    sub.set_defaults(run=command)
    if threads:
        sub.add_argument("--threads", type=int, metavar="N", help="CPU threads (all)")
    if json:
        sub.add_argument("--json", action="store_true", help="print numbers as JSON")
