"""The ablation tables: rows, runs and report."""
