"""Extraction: media -> latents, once per clip, by any number of processes (section 3.1)."""
