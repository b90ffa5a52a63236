"""When things happen: the timing curve, and where one comes from."""

MOTION_FILES = ("motion.safetensors", "motion.json")  # of a motion predictor in a model directory
