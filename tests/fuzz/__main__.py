"""`python -m tests.fuzz`: try changed files of each kind, and say what became of them."""

import argparse
import sys
import time

from . import fuzz
from .kinds import KINDS

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (all)")
parser.add_argument("--minutes", type=float, default=1.0, help="for all kinds together (1)")
parser.add_argument("--cases", type=int, default=10**9, help="of each kind (what the time allows)")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
args = parser.parse_args()
if unknown := set(args.kinds) - set(KINDS):
    parser.error(f"no kind is called {min(unknown)!r}; there are {', '.join(KINDS)}")

kinds = args.kinds or list(KINDS)
all_right = True
print(f"{time.strftime('%Y-%m-%d')}, seed {args.seed}, from case {args.first}")
for kind in kinds:
    found = fuzz(kind, args.seed, args.first, args.cases, 60 * args.minutes / len(kinds))
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(found.counts.items()))
    print(f"{kind}: {found.counts.total()} cases: {counts}", flush=True)
    for line in found.wrong:
        print("   ", line, flush=True)
    all_right = all_right and not found.wrong
sys.exit(not all_right)
