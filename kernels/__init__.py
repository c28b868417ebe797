"""Triton kernels, one file an op; installed as ``fastcsm.kernels``."""
