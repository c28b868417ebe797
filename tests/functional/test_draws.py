"""Draws of whole samples: what is refused in which words, and heads and networks of several stages."""

import pytest
import torch

from fastcsm import functional
from fastcsm.functional import Draw, Head, Interval, Network, Stages

HEAD = Head([torch.zeros(4, 3), torch.zeros(1, 4)], [torch.ones(4), None], activation="tanh")
DEGREES = [torch.tensor([1, 1, 2])]
NETWORK = Network([torch.ones(3, 3), torch.ones(6, 3)], [None, torch.ones(6)], DEGREES)
STAGES = Stages([0.1, 0.2], 3)
X = torch.zeros(5, 3)


def other(value, **changes):
    return value._replace(**changes)


WRONG_PARTS = [
    ({"head": other(HEAD, weights=[torch.zeros(4, 4), torch.zeros(1, 4)])}, r"head\.weights\[0\] .*\(4, 3\)"),
    ({"head": other(HEAD, biases=[None])}, r"head\.biases must hold one entry for each of the 2 weights"),
    ({"head": other(HEAD, frequencies=torch.zeros(1, 1))}, r"head\.frequencies must have 1 axes"),
    ({"head": other(HEAD, activation="swish")}, "activation must be one of .*, got 'swish'"),
    ({"network": other(NETWORK, weights=NETWORK.weights[:1])}, r"network\.weights and network\.biases must"),
    ({"network": other(NETWORK, biases=[None, torch.ones(5)])}, r"network\.biases\[1\] .*\(6,\), got \(5,\)"),
    ({"network": other(NETWORK, degrees=[DEGREES[0].int()])}, r"network\.degrees\[0\] must be int64 on cpu"),
    ({"network": other(NETWORK, order=[0, 2, 2])}, r"network\.order must be a permutation of range\(3\)"),
    ({"head": HEAD[:2]}, r"head\[0\] must be a Head, got list"),
    ({"network": None}, "network must be a Network or a sequence of them, got NoneType"),
    ({"draw": Draw(first=2, last=1)}, "first and last must satisfy 0 <= first <= last <= 3, got 2, 1"),
    ({"draw": Draw(seed=-1)}, r"seed must be in \[0, 2\^64\), got -1"),
    ({"draw": Draw(samples=torch.zeros(5))}, "samples must be an integer tensor on cpu, got torch.float32"),
    ({"x": X[0]}, r"x must have shape \(samples, variables\), got \(3,\)"),
]
WRONG_STAGES = [
    ({"stages": Stages([-1.0], 3)}, "step_sizes must not be negative, got -1.0"),
    ({"stages": Stages([0.1], -1)}, "steps must be at least 0, got -1"),
    (
        {"stages": Stages([0.1], 1, [1.0, 2.0])},
        "score_scales must have one entry for each of the 1 step_sizes",
    ),
    (
        {"stages": Stages([0.1], 1, None, [])},
        "features must have one entry for each of the 1 step_sizes, got 0",
    ),
    ({"head": [HEAD] * 3}, "one each, or one for each of the 2 step_sizes, got 3 and 1"),
    (
        {"head": [HEAD, other(HEAD, activation="silu")], "network": [NETWORK] * 2},
        r"head\[1\]\.activation must",
    ),
    (
        {"head": [HEAD] * 2, "network": [NETWORK, other(NETWORK, order=[2, 1, 0])]},
        r"network\[1\]\.order must be that of network\[0\]",
    ),
    (
        {"head": [HEAD] * 2, "network": [NETWORK, other(NETWORK, degrees=[torch.tensor([1, 2, 2])])]},
        r"network\[1\]\.degrees must be that of network\[0\]",
    ),
    (
        {"head": [HEAD, other(HEAD, weights=[HEAD.weights[0], torch.zeros(4, 4), HEAD.weights[1]])]},
        r"head\[1\]\.biases must hold one entry for each of the 3 weights",
    ),
]
DEEP = other(HEAD, weights=[HEAD.weights[0], torch.zeros(4, 4), HEAD.weights[1]], biases=[None] * 3)
WRONG_STAGES += [
    ({"head": [HEAD, DEEP], "network": [NETWORK] * 2}, r"head\[1\] must have 2 layers like head\[0\], got 3"),
    (
        {"head": [HEAD] * 2, "network": [NETWORK, other(NETWORK, residual=True)]},
        r"network\[1\]\.residual must be that of network\[0\]",
    ),
]
WRONG_DENSITIES = [
    ({"interval": Interval(1.0, 1.0)}, "low and high must be finite with low < high, got 1.0 and 1.0"),
    ({"interval": Interval(-1.0, 1.0, panels=17)}, r"panels must be in \[1, 16\], got 17"),
    ({"interval": Interval(-1.0, 1.0, -1.0)}, "tolerance must be a positive number, got -1.0"),
    ({"flow_tolerance": 0.0}, "flow_tolerance must be a positive number, got 0.0"),
    ({"sigmas": [1.0, 2.0, 3.0]}, "sigmas must be at most two positive numbers"),
    ({"head": [HEAD] * 2}, "head and network must be one each, got 2 and 1"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_PARTS + WRONG_STAGES)
def test_bad_arguments_of_langevin_draw(change, message):
    given = {"x": X, "head": HEAD, "network": NETWORK, "stages": STAGES}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        functional.langevin_draw(**(given | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "message"), WRONG_PARTS + WRONG_DENSITIES)
def test_bad_arguments_of_conditional_density_draw(change, message):
    given = {"x": X, "head": HEAD, "network": NETWORK, "interval": Interval(-1.0, 1.0)}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        functional.conditional_density_draw(**(given | change))
    assert "\n" not in str(caught.value)


def test_equal_stages_are_one_head_for_all():
    torch.manual_seed(1)
    head = Head([torch.randn(4, 5), torch.randn(1, 4)], [None, None], torch.tensor([2.0]))
    network = other(NETWORK, weights=[torch.randn(3, 3), torch.randn(6, 3)], order=torch.tensor([2, 0, 1]))

    def copy(model):
        again = {
            name: getattr(model, name).clone() for name in ("frequencies", "order") if name in model._fields
        }
        return model._replace(weights=[weight.clone() for weight in model.weights], **again)

    one = functional.langevin_draw(X, head, network, STAGES, Draw(seed=3, denoise=0.1))
    both = functional.langevin_draw(
        X, [head, copy(head)], [network, copy(network)], STAGES, Draw(seed=3, denoise=0.1)
    )
    assert one[0].abs().min() > 0
    for a, b in zip(one, both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
