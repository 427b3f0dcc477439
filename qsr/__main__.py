"""The program `qsr`, `python -m qsr` too: it answers signals before it imports the rest."""

import sys

from .system.signals import answered_by, leave


def main() -> int:
    """Run the command line on the arguments of this process; returns the exit code."""
    with answered_by(leave):
        from .cli import main

        return main()


if __name__ == "__main__":
    sys.exit(main())
