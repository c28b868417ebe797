"""Checks, then timings, of every kernel on a GPU; ``python bench/gpu --help``."""
