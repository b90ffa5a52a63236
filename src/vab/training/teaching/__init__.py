"""A model of one's own: a model goes on learning from a folder of labelled sounds and pictures."""
