"""When things happen: the timing curve, and where one comes from."""
