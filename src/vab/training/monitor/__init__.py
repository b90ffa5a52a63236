"""What a run shows while it goes on: its journal, validation, samples, speed, and the signals it hears."""
