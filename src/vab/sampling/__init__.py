"""Tokens from logits (section 3.3, appendix E): pure functions over a network's logits."""
