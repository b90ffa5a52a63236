"""Manifests and latents (section 3.1, appendix B.1): what training reads."""
