"""Does a sound happen when its clip's own sound does? Correlations, onsets, and DeSync where it is there."""
