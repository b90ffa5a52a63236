"""Arithmetic of the tables: statistics, retrieval, classification, Fréchet distances, signal measures."""
