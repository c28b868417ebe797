"""The specification of every op in plain PyTorch: any floating dtype, any device, short."""
