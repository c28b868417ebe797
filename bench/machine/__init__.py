"""A machine that executes compiled PTX on the host: a test instrument, never a backend."""
