"""The terms on which networks are compared, where help tells them too. Without torch."""

from pathlib import Path

TRAINING_SETS = ("BSDS500-test", "BSDS500-train", "DIV2K-test-LRx4", "General100", "T91", "photos")
BASELINE_STEPS = 3000  # of each row of `baselines`, after the same full precision
BASELINE_RUNS = Path("runs") / "baselines"  # where weights are looked for: not in the repository
ABLATION_SETS = ("Set5", "Set14", "B100")
