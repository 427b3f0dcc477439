"""`python -m qsr.cli`, which `torchrun -m qsr.cli` runs too."""

import sys

from ..system.signals import answered_by, leave
from . import main

with answered_by(leave):
    sys.exit(main())
