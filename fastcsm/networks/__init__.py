"""Modules without a loss: context networks and score heads, and what the rest of the package asks of them."""
