"""What shells and `man` know of the commands: `qsr completion | man`, made from the parser."""

from __future__ import annotations

import argparse
from typing import Any

import shtab
from argparse_manpage.manpage import Manpage

from ..system.version import __version__
from . import COMMANDS, parser
from .common import Lines, let_run

PLACES = {  # where shells look
    "bash": "~/.local/share/bash-completion/completions/qsr",
    "zsh": "a file _qsr in a folder of $fpath",
    "fish": "~/.config/fish/completions/qsr.fish",
}


def add_completion(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr completion`."""
    let_run(sub, _completion, threads=False, json=False)
    sub.add_argument("shell", choices=list(PLACES), help="which one")
    sub.epilog = "Put what is printed where the shell looks: " + "; ".join(
        f"{shell}: {place}" for shell, place in PLACES.items()
    )


def _completion(args: argparse.Namespace) -> Lines:
    whole = parser(COMMANDS)
    _complete_files(whole)
    yield shtab.complete(whole, shell=args.shell)


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Whatever is neither a number nor a choice may be a file."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _complete_files(sub)
        elif action.choices is None and action.type is None and action.nargs != 0:
            about: Any = action  # shtab reads an attribute that argparse does not have
            about.complete = shtab.FILE


def add_man(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr man`."""
    let_run(sub, _man, threads=False, json=False)
    sub.epilog = "To install it: qsr man > ~/.local/share/man/man1/qsr.1"


def _man(args: argparse.Namespace) -> Lines:
    whole = parser(COMMANDS)
    about = {"project_name": "qsr", "version": __version__, "manual_title": "qsr"}
    about["description"] = "low-bit super-resolution (QuantSR)"
    yield str(Manpage(whole, _data=about)).rstrip()
