"""Triton kernels, one file an op, parts of several in ``common/``; installed as ``fastcsm.kernels``."""
