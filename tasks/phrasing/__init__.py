"""Give a blueprint its words: the query of plan mode and the instruction of agent mode."""
