"""Evaluation: metrics with confidence intervals, beside the paper's numbers."""
