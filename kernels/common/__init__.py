"""Parts of several ops' kernels."""
