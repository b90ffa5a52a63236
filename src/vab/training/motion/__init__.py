"""The training of the motion predictor, on rendered films alone."""
