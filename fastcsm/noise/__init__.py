"""How data are perturbed."""
