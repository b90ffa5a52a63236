"""Files in and out (section 3.1): one open file with its clocks, frames, sound, images, writing."""
