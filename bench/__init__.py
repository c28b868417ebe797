"""Measurements: a speed is a ratio to named baselines of one process, and a share of the machine's limit."""
