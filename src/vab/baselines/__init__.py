"""What the paper compares itself with, rebuilt on the same latents (appendix E)."""
