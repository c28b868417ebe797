"""probability_flow: schema and fake; not differentiable.

Products of float32 are in full float32, whatever ``torch.set_float32_matmul_precision`` says. Operands
rounded to tf32 or bfloat16 put more into s than the usual tolerance of a step, 1e-4, allows; estimates of
error see that too, and shorter steps do not lessen it. At that tolerance bfloat16 operands took two to three
times the evaluations for 100 to 200 times the error, tf32 about as many for 20 to 40 times. The flow
inside the CPU's ``conditional_density_draw``, whose usual tolerance is 1e-2, follows torch's setting.
"""

import torch

from .library import define


def _fake(context, x, *args):
    wide = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    return tuple(torch.empty_like(x, dtype=wide) for _ in range(3))


#: As :func:`fastcsm.reference.probability_flow.probability_flow`.
probability_flow = define(
    "probability_flow(Tensor context, Tensor x, Tensor[] weights, Tensor[] biases, Tensor frequencies,"
    " str activation, float sigma_from, float sigma_to, float tolerance, bool change, float squash)"
    " -> (Tensor, Tensor, Tensor)",
    _fake,
    gradient=False,
)
