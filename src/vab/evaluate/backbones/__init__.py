"""Networks whose features and classes the metrics of generated sound are computed on."""
