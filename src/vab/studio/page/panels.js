// The side panels.
