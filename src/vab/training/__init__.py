"""Training (section 3.2, appendices B.3 and B.4): masking, losses, batches, the loop, the codec."""
