"""`python -m qsr.cli`, which `torchrun -m qsr.cli` runs too."""

import sys

from . import main

sys.exit(main())
