"""Speed and cost of generation, stage by stage: ``vab bench`` (the seconds of Table 1)."""
