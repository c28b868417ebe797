"""The same computations in plain PyTorch, as a careful user writes them without fastcsm.

Each docstring says why its function is fair. What they are given is a :class:`.head.Rows`, or tensors.
"""
