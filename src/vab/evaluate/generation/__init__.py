"""Evaluation of generated sound (Table 1): synthesis, features, metrics."""
