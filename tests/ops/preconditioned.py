"""Random preconditioned heads, and what every backend is held to on them."""

import math

import torch
from support import Case

SQUASH = 3.0
#: Rows at the data, and far from all of them.
DISTANCES = 1.0, 1e3, 1e6


class Preconditioned(Case):
    """A random head whose contexts end with -ln(tau), tau over several e-folds, and rows so far out."""

    def __init__(self, distance=1.0, **settings):
        super().__init__(**settings)
        self.context[:, -1] *= 1.5
        self.x = distance * self.x


class Line:
    """r = -k (u - c): along the flow v - c grows by exp(k d theta), and log q falls by the exponent."""

    activation, frequencies = "silu", None

    def __init__(self, k, dtype=torch.float64):
        self.context = torch.tensor([[-0.4, -1.0], [0.0, 0.0], [0.7, 2.0]], dtype=dtype)
        self.x = torch.tensor([0.3, -1.0, 0.7], dtype=dtype)
        self.weights = [
            torch.tensor([[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]], dtype=dtype),
            torch.tensor([[-k, k]], dtype=dtype),
        ]
        self.biases = [None, None]

    def turned(self, sigma_from, sigma_to):
        """theta at the one level less that at the other, by row: atan(sigma / tau)."""
        own = self.context[:, -1].double().exp()
        return (sigma_to * own).atan() - (sigma_from * own).atan()


def asinh_rows(dtype):
    """Rows of all magnitudes and a head that passes u on: with ``ASINH`` a step adds u, and nothing else."""
    far = torch.logspace(-8, 19 if dtype is torch.float32 else 150, 997, dtype=torch.float64)
    near = torch.linspace(0, 20, 1001, dtype=torch.float64)
    case = Case(rows=2 * (len(far) + len(near)), context=1, hidden=(2,), activation="relu", frequencies=0)
    case.context = torch.zeros_like(case.context)
    case.x = torch.cat([far, near, -far, -near])
    case.weights = [torch.tensor([[0.0, 1.0], [0.0, -1.0]]), torch.tensor([[1.0, -1.0]])]
    case.biases = [torch.zeros(2), torch.zeros(1)]
    return case.to(dtype)


#: e = 2 / rho and rho = 1e18, so that noise of 1e-9 is all there is besides.
ASINH = {
    "step_sizes": [2 * math.exp(-41.5)],
    "score_scales": [1.0],
    "steps": 1,
    "stage_features": [-41.5],
    "squash": SQUASH,
}
