"""Films are written: the picture copied or encoded, new sound, and all else (3.1)."""
