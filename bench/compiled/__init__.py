"""What compilers made of the kernels, against committed tables: a program a file."""
