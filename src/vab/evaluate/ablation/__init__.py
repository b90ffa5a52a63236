"""The ablation tables: what is changed, the runs and the report."""
