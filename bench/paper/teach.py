"""Teach the head that comes with the package: ``python bench/paper/teach.py``, a minute of one thread.

It writes ``fastcsm/networks/taught.npz``, where preset ``table`` begins; see fastcsm/networks/taught.py.
"""

import torch

from fastcsm.networks import taught
from fastcsm.nn import ScoreHead


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    head = ScoreHead(33, (64, 64), "silu", frequencies=0)
    left = taught.teach(head, (20.0, 0.01))
    taught.save(head)
    print(f"{taught.FILE.name}: {left:.4f} nats of a variable over the exact score")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
