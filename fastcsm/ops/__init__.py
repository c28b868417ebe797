"""The private op layer: schema, fake, autograd, and which backend runs. Users call ``functional``."""
