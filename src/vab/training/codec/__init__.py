"""The training of the bundled codec."""
