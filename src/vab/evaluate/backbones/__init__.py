"""Networks whose features and classes generated sound is judged by."""
