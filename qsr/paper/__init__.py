"""The paper beside ours: costs, tables, figures, ablation, records."""
