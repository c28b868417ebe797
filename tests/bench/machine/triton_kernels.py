"""Every Triton kernel, as compiled, against the reference; test_triton_on_the_machine.py runs this file.

The variable ARCH is 80 or 90. With MACHINE_ALL=1 every op runs in every precision with every head, else a
part that a continuous run has time for; most of the time is Triton's, compiling. In tf32 Triton hands the
matrix units numbers of float32, of which they leave out the lowest bits: so does plain PyTorch here. Rounded
operands, as in emulated_kernels.py, are 4 to 6 times as accurate.
"""

import importlib
import os
from functools import partial
from pathlib import Path

import comparisons
import pytest
import test_rescale
import torch
import triton
from comparisons import DTYPES, chain, density, log_density_gradients, truncate_tf32
from densities import Restoring
from preconditioned import SQUASH
from support import SEEDS, assert_as_accurate, triton_cases
from test_langevin_draw import FORMS, Draw
from test_linear_csm_loss import LinearCase
from test_masked_linear import Layer
from test_probability_flow import LEVELS, back, flow

from fastcsm import kernels
from fastcsm.bench.machine import host, triton_jit
from fastcsm.kernels import configurations
from fastcsm.ops import linear_csm_loss

ARCHITECTURE = int(os.environ.get("ARCH", "80"))
ALL = os.environ.get("MACHINE_ALL") == "1"
BACKEND = "triton_machine"
DEFAULT = {"rows": 65, "context": 33, "hidden": (128, 128), "frequencies": 16, "activation": "softplus"}
WIDE = {"rows": 17, "context": 3, "hidden": (300, 20), "frequencies": 0, "activation": "silu"}
HEADS = [*({**case} for case in triton_cases()), DEFAULT, WIDE]
plain_precision = partial(comparisons.plain_precision, narrow=truncate_tf32)
in_precision = partial(comparisons.in_precision, BACKEND, narrow=truncate_tf32)
LAUNCHED = set()
check = partial(comparisons.check, BACKEND, narrow=truncate_tf32)


@pytest.fixture(autouse=True)
def machine():
    with triton_jit.on_the_machine(ARCHITECTURE, orders=2), host.recorded() as reports:
        yield
    LAUNCHED.update(report.kernel for report in reports)


@pytest.fixture
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield request.param
    torch.set_float32_matmul_precision(before)


def chosen(some, values):
    """Parametrises ``precision`` and a value: all pairs with MACHINE_ALL, else ``some``, by architecture."""
    pairs = [(precision, value) for value in values for precision in DTYPES] if ALL else some[ARCHITECTURE]
    return pytest.mark.parametrize(
        ("precision", "value"), pairs, indirect=["precision"], ids=lambda value: _label(value)
    )


def _label(value):
    if isinstance(value, dict):
        return "-".join(str(value[name]) for name in ("hidden", "activation") if name in value)
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def sizes(value):
    return {name: size for name, size in value.items() if name != "seed"}


@chosen(
    {80: [("float32", HEADS[0]), ("bfloat16", HEADS[5])], 90: [("float16", HEADS[0]), ("tf32", HEADS[2])]},
    HEADS,
)
def test_score_head(precision, value):
    check(comparisons.scores, comparisons.plain_scores, precision, **sizes(value))


@chosen({80: [("tf32", HEADS[1])], 90: [("bfloat16", HEADS[1])]}, HEADS)
def test_score_head_backward(precision, value):
    check(comparisons.backward, comparisons.plain_backward, precision, **sizes(value))


@chosen(
    {
        80: [("float32", DEFAULT), ("tf32", HEADS[3])],
        90: [("float32", HEADS[1]), ("bfloat16", DEFAULT), ("float16", HEADS[6])],
    },
    HEADS,
)
def test_csm_loss(precision, value):
    check(comparisons.loss, comparisons.plain_gradients, precision, **sizes(value))


LAYERS = [
    (37, 40, 70, "unsorted", "silu"),
    (130, 257, 33, "sorted", "gelu"),
    (129, 20, 140, "narrow", "elu"),
    (1, 1, 1, "one variable", None),
    (64, 64, 64, "ties", None),
    (300, 17, 9, "contexts", "softplus"),
    (0, 9, 4, "sorted", "tanh"),
    (4, 0, 3, "sorted", "sigmoid"),
    (9, 4096, 70, "sorted", None),
]


@chosen(
    {
        80: [("float32", LAYERS[-1]), ("bfloat16", LAYERS[1])],
        90: [("float32", LAYERS[1]), ("tf32", LAYERS[0]), ("float16", LAYERS[3])],
    },
    LAYERS,
)
def test_masked_linear(monkeypatch, precision, value):
    """Layers of more than 128 rows in the tiles of large layers."""
    *shape, degrees, activation = value
    if shape[0] > 128:
        monkeypatch.setattr(configurations, "FEW", 0)
    layer = Layer(*shape, degrees)
    low = layer.to(DTYPES[precision])
    with plain_precision(precision):
        plain = low.plain(activation)
    truth = layer.to(DTYPES[precision]).to(torch.float64).plain(activation)
    assert_as_accurate((low.fused(activation, BACKEND), plain, truth))


@chosen({80: [("bfloat16", True)], 90: [("float16", False)]}, [False, True])
def test_linear_csm_loss(monkeypatch, precision, value):
    """The composition runs whole on the backend, in blocks of dimensions too."""
    monkeypatch.setattr(linear_csm_loss, "block_size", lambda *_: 3 if value else 7)
    cases = []
    for seed in SEEDS:
        case = LinearCase(seed=seed, shuffled=value).to(DTYPES[precision])
        with plain_precision(precision):
            plain = case.plain()
        cases.append((case.fused(BACKEND), plain, case.to(torch.float64).plain()))
    assert_as_accurate(*cases)


CHAINS = [{**case, "context": max(case["context"], 1)} for case in HEADS]


@chosen({80: [("bfloat16", CHAINS[0])], 90: [("float32", CHAINS[5])]}, CHAINS)
def test_langevin(precision, value):
    check(chain, comparisons.plain_chain, precision, **sizes(value))


@chosen({80: [("bfloat16", CHAINS[0])], 90: [("tf32", CHAINS[1])]}, CHAINS)
def test_langevin_of_a_preconditioned_head(precision, value):
    run, plain = (partial(f, squash=SQUASH) for f in (chain, comparisons.plain_chain))
    check(run, plain, precision, **sizes(value))


@chosen({80: [("float32", "conditional")], 90: [("bfloat16", "staged")]}, list(FORMS))
def test_langevin_draw(precision, value):
    draw, dtype = Draw(**({"features": 3} if value != "order" else {}) | FORMS[value]), DTYPES[precision]

    def results(backend, dtype, storage=dtype):
        x, clean = draw.run(backend, dtype, storage=storage, batch=17, steps=1, sample=2**33)
        return {"x": x, "clean": clean}

    got, truth = results(BACKEND, dtype), results("reference", torch.float64)
    with plain_precision(precision):
        plain = results("reference", dtype)
    assert_as_accurate((got, plain, truth))


# Hidden widths, frequencies, context and activation; and whether quantiles are asked for.
DENSITIES = [
    ((5,), 0, 1, "tanh", False),
    ((33, 16, 7), 17, 6, "gelu", True),
    ((128, 128), 16, 32, "softplus", False),
    ((17, 9), 3, 70, "elu", True),
    ((8, 24, 15, 31), 2, 13, "sigmoid", False),
]


@chosen({80: [("float32", DENSITIES[2])], 90: [("bfloat16", DENSITIES[3])]}, DENSITIES)
def test_conditional_density(precision, value):
    hidden, frequencies, context, activation, inverse = value

    def run(case, backend):
        point = torch.full((2,), 0.3).to(case.x.dtype) if inverse else None
        found = density(case, backend, point=point, inverse=inverse)
        assert found["error"].isfinite().all()
        return {name: found[name] for name in ("point", "log_density", "log_normalizer", "cdf")}

    head = {"rows": 2, "hidden": hidden, "frequencies": frequencies, "context": context}
    # Of narrow products' errors most is the rounding of the weights, one draw a head.
    cases = [Restoring(activation=activation, steepness=2.0, seed=seed, **head) for seed in SEEDS]
    assert_as_accurate(*(in_precision(precision, case, run) for case in cases))


@chosen(
    {80: [("bfloat16", (None, None))], 90: [("tf32", (0.4, SQUASH))]},
    [(None, None), (0.4, None), (0.4, SQUASH)],
)
def test_gradients_of_a_density(precision, value):
    run = partial(log_density_gradients, feature=value[0], squash=value[1])
    seeds = 0, 1, 3  # whose rows all have a density
    cases = [Restoring(rows=5, steepness=2.0, seed=seed, hidden=(9, 5)) for seed in seeds]
    assert_as_accurate(*(in_precision(precision, case, run) for case in cases))


FLOWS = [case for case in CHAINS if case["rows"] != 130]


@chosen({80: [("bfloat16", FLOWS[0])], 90: [("float32", FLOWS[3])]}, FLOWS)
def test_probability_flow(precision, value):
    comparisons.check_flow(
        partial(flow, backend=BACKEND),
        partial(flow, backend="reference"),
        comparisons.Case(**value),
        precision,
        LEVELS if value["rows"] % 2 else back(),
    )


@chosen({80: [("float32", FLOWS[3])], 90: [("bfloat16", FLOWS[2])]}, FLOWS)
def test_probability_flow_of_a_preconditioned_head(precision, value):
    run, plain = (partial(flow, backend=name) for name in (BACKEND, "reference"))
    levels = LEVELS if value["rows"] % 2 else back()
    comparisons.check_flow(run, plain, comparisons.Case(**value), precision, levels | {"squash": SQUASH})


def test_rescale_of_gradients():
    with host.recorded() as reports:
        test_rescale.check_as_compiled(BACKEND)
    for report in reports[:2]:  # of upstream 1: each warp reads that, and nothing else
        kinds, warps = report.counts["kinds"], report.grid[0] * report.threads // 32
        assert kinds["load_global"] == warps
        assert kinds["store_global"] == 0
        assert report.counts["instructions"] <= 10 * warps
    assert reports[2].counts["kinds"]["store_global"] > 0


def test_every_kernel_was_launched():
    """By the tests before this one: none is left that only the interpreter ran."""
    if not LAUNCHED:
        pytest.skip("runs after the others")
    found = set()
    root = Path(kernels.__path__[0])
    for path in [*root.glob("*.py"), *root.glob("common/*.py")]:
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        module = importlib.import_module(f"fastcsm.kernels.{name}")
        found |= {name for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
    assert {name for name in found if name.endswith("_kernel")} <= LAUNCHED
