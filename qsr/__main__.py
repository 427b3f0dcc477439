"""The program `qsr`, `python -m qsr` too: it answers signals before it imports the rest."""

import sys

from .system.signals import answer_by, leave


def main() -> int:
    """Run the command line on the arguments of this process; returns the exit code."""
    answer_by(leave)  # to the very end: a signal while modules are torn down is one line too
    from .cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
