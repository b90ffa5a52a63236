"""Table 1: sounds, their features and their scores."""
