"""Evaluation: measures with their intervals, and the paper's numbers beside ours."""
