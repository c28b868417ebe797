"""How a number comes to be: what a case is, time, memory, error, the machine's limits, and tables."""
