"""File in, sound or vector out (sections 3.3 to 3.5): the pipeline and batches of files."""
