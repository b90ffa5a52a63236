"""How fast generation is, stage by stage, and what it costs: ``vab bench`` (the seconds of Table 1)."""
