"""A library of sounds and videos that is searched by sound or video."""
