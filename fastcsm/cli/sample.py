"""``fastcsm sample``: draw samples from a run."""

import argparse
import time
from typing import Any

import numpy as np
import torch

from ..atomic import atomic_file
from ..evaluation import plots
from ..progress import Bar, tell
from ..samplers import BY_NAME
from ..training import checkpoint
from .options import Help, UsageError, add_device, device_of, output


def add(commands: Any) -> None:
    """The command's arguments."""
    sample = commands.add_parser(
        "sample",
        help="draw samples from a run",
        formatter_class=Help,
        description="Draw samples, one dimension after the other. A seed means the same samples for any "
        "--batch-size.",
    )
    option = sample.add_argument
    option("run", metavar="RUN", help="run folder")
    option(
        "--out",
        required=True,
        metavar="FILE",
        help=".png picture, or .npz with x (model space) and samples (raw values: uint8, or float64)",
    )
    option(
        "--method",
        choices=list(BY_NAME),
        help="exact draws at the largest noise level carried down the probability flow, exact draws at the "
        "smallest level, or annealed Langevin dynamics (default: flow, or langevin where the noise is not "
        "conditional or --steps or --step-size is given)",
    )
    option("--n", type=int, default=64, metavar="N", help="number of samples (default: 64)")
    option("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    option("--steps", type=int, metavar="T", help="Langevin steps per noise level (default: the run's)")
    option(
        "--step-size",
        type=float,
        metavar="X",
        help="step size e_0 at the smallest level (default: the run's)",
    )
    option("--denoise", action="store_true", help="return the mean of the noise-free value (Tweedie)")
    option("--batch-size", type=int, metavar="N", help="samples drawn together (default: all)")
    option("--no-ema", action="store_true", help="use the last weights, not the averaged ones")
    option("--overwrite", action="store_true", help="replace FILE where it exists")
    add_device(sample)


def run(given: argparse.Namespace) -> int:
    """Draw, and write the samples."""
    method = given.method
    if given.steps is not None or given.step_size is not None:
        if method not in (None, "langevin"):
            raise UsageError(f"steps and step-size belong to Langevin dynamics, got method '{method}'")
        method = "langevin"
    path, device = output(given.out, given.overwrite, (".png", ".npz")), device_of(given.device)
    if given.n < 1:
        raise UsageError(f"n is {given.n}, expected at least 1")
    if not 0 <= given.seed < 2**63:
        raise UsageError(f"seed is {given.seed}, expected a number in 0..2^63-1")
    pictured = path.suffix.lower() == ".png"
    if pictured:
        plots.new_figure(1, 1)  # where there can be none, nothing is drawn for it
    saved = checkpoint.read(given.run, tensors=())
    model = checkpoint.load(given.run, ema=not given.no_ema, device=device)
    method = method or model.sample_methods[0]
    options = saved.config.sample_options(method)
    for name in ("steps", "step_size", "batch_size"):
        if getattr(given, name) is not None:
            options[name] = getattr(given, name)
    if given.denoise:
        options["denoise"] = True
    started = time.monotonic()
    with Bar("sampling", unit="dimension") as bar:
        x = model.sample(given.n, method, seed=given.seed, progress=bar.to, **options)
    exists = x.isfinite().all(1)
    if not exists.all():
        missing = f"{int((~exists).sum())} of {given.n} samples have a conditional without a density"
        if not exists.any():
            raise UsageError(f"{missing}: train for longer, or use --method langevin")
        tell(f"fastcsm: warning: {missing} and are left out")
        x = x[exists]
    raw = saved.transform.decode(x)
    with Bar(f"writing '{path}'"):
        if pictured:
            plots.samples(raw, saved.transform, path)
        else:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            with atomic_file(path) as file:
                np.savez_compressed(file, x=x.cpu().numpy(), samples=raw)
    print(f"{path}: {len(x)} samples in {time.monotonic() - started:.1f} s")
    return 0
