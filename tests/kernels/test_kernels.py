"""What the Triton kernels share: activations, noise, and how launches are laid out."""

import time
from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from fastcsm import random
from fastcsm.activations import ACTIVATIONS
from fastcsm.backends import Triton
from fastcsm.kernels import configurations, csm_loss, launch, masked_linear, score_head, tuning
from fastcsm.kernels.common import philox
from fastcsm.kernels.common.activations import activate
from fastcsm.kernels.common.preconditioning import squashed

pytestmark = pytest.mark.skipif(not Triton().interpreted(), reason="needs TRITON_INTERPRET=1")

EDGES = [0.0, 1e-30, 1e-6, 0.59, 0.61, 1.0, 12.0, 20.0, 21.0, 88.0, 100.0, 710.0, 1e18]


@triton.jit
def _activate(x, f, d, e, N: tl.constexpr, NAME: tl.constexpr):
    i = tl.arange(0, N)
    values = activate(tl.load(x + i), NAME)
    tl.store(f + i, values[0])
    tl.store(d + i, values[1])
    tl.store(e + i, values[2])


def activated(x, name):
    results = [torch.empty_like(x) for _ in range(3)]
    _activate[(1,)](x, *results, len(x), name)
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, dtype):
    edges = torch.tensor(EDGES, dtype=torch.float64)
    x = torch.cat([torch.linspace(-30, 30, 1024 - 2 * len(EDGES), dtype=torch.float64), edges, -edges]).to(
        dtype
    )
    entry = ACTIVATIONS[name]
    for got, function in zip(activated(x, name), (entry.f, entry.df, entry.d2f)):
        exact = function(x.double())
        error = (got.double() - exact).abs()
        assert got.isfinite().all()
        assert (error <= 4 * torch.finfo(dtype).eps * exact.abs().clamp(min=1)).all()
        tail = (x < -8) & (exact.abs() > 1e-30)
        assert (error[tail] <= 100 * torch.finfo(dtype).eps * exact[tail].abs()).all()


@triton.jit
def _squashed(v, u, slope, N: tl.constexpr):
    i = tl.arange(0, N)
    values = squashed(tl.load(v + i), 3.0)
    tl.store(u + i, values[0])
    tl.store(slope + i, values[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squash_over_all_magnitudes(dtype):
    """u0 asinh(v / u0) and its derivative, to a few units of rounding of their own."""
    last = 38 if dtype is torch.float32 else 307
    far = torch.logspace(-30, last, 1024, dtype=torch.float64)
    near = torch.linspace(0, 20, 1024, dtype=torch.float64)
    v = torch.cat([far, near, -far, -near]).to(dtype)
    u, slope = torch.empty_like(v), torch.empty_like(v)
    _squashed[(1,)](v, u, slope, len(v))
    t = v.double() / 3
    expected = 3 * torch.asinh(t), torch.hypot(torch.ones_like(t), t).reciprocal()
    for got, exact in zip((u, slope), expected):
        torch.testing.assert_close(got.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0)
    _squashed[(1,)](v * float("nan"), u, slope, len(v))
    assert u.isnan().all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_is_kept(name):
    assert activated(torch.full((16,), float("nan")), name)[0].isnan().all()


@triton.jit(do_not_specialize=["seed", "step"])
def _noise(
    samples, dimensions, w0, w1, z, seed: tl.int64, step: tl.int64, N: tl.constexpr, STREAM: tl.constexpr
):
    i = tl.arange(0, N)
    sample, dimension = tl.load(samples + i), tl.load(dimensions + i)
    a, b = philox.noise_words(seed.to(tl.int64), sample, dimension, step.to(tl.int64), STREAM)
    tl.store(w0 + i, a.to(tl.int64))
    tl.store(w1 + i, b.to(tl.int64))
    tl.store(
        z + i, philox.normal(seed.to(tl.int64), sample, dimension, step.to(tl.int64), z.dtype.element_ty)
    )


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("step", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**32 + 5, 2**63 - 1, -(2**63)])
def test_noise_is_that_of_the_reference(seed, step, stream):
    samples, dimensions = torch.randint(0, 2**48, (128,)), torch.randint(0, 2**32, (128,))
    samples[:2], dimensions[:2] = torch.tensor([0, 2**48 - 1]), torch.tensor([0, 2**32 - 1])
    w0, w1 = torch.empty_like(samples), torch.empty_like(samples)
    for dtype in (torch.float32, torch.float64):
        z = torch.empty(128, dtype=dtype)
        _noise[(1,)](samples, dimensions, w0, w1, z, seed, step, 128, stream)
        words = random._words(seed, samples, dimensions, step, stream)
        assert torch.equal(w0, words[0])
        assert torch.equal(w1, words[1])
        expected = random.normal(seed, samples, dimensions, step, dtype)
        torch.testing.assert_close(
            z, expected, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps
        )


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def head(rows, hidden, context=32, frequencies=0):
    widths = [context + 1 + 2 * frequencies, *hidden, 1]
    weights = [meta(o, i) for i, o in pairwise(widths)]
    biases = [meta(o) for o in widths[1:]]
    return meta(rows, context), meta(rows), weights, biases, meta(frequencies), "silu"


def test_launches_can_be_recorded():
    one = meta(1)
    with launch.recorded() as launches:
        loss, *_ = csm_loss.csm_loss(*head(2**31 + 1, (128, 128)), one, one, one, True, True, True)
    assert [entry.kernel.__name__ for entry in launches] == ["csm_loss_kernel", "reduce_partials_kernel"]
    assert loss.device.type == "meta"
    assert 2**31 + 1 in [arg for arg in launches[0].args if isinstance(arg, int)]


@pytest.mark.parametrize("hidden", [(1,), (128, 128), (512, 512), (512, 512, 512, 512)])
def test_partial_sums_stay_small(hidden, monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED_PROGRAMS", 1000)
    one = meta(1)
    for rows in (0, 1, 1 << 20):
        with launch.recorded() as launches:
            csm_loss.csm_loss(*head(rows, hidden), one, one, one, True, True, True)
        partials, programs = launches[1].args[0], launches[1].args[2]
        assert 1 <= programs <= max(rows, 1)
        assert 4 * partials.numel() <= max(launch.PARTIAL_BYTES, 4 * partials.numel() // programs)


@pytest.mark.parametrize(
    ("widths", "block"), [((1,), 16), ((128, 5), 128), ((130, 257), 64), ((256, 256), 128)]
)
def test_chunks(widths, block):
    assert configurations.chunk(widths) == block


@pytest.fixture
def choices(monkeypatch):
    monkeypatch.setattr(configurations.choices, "best", {})
    return configurations.choices


def test_tuning_takes_the_fastest_of_each_choice(choices):
    layer = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4), torch.ones(5).long(), torch.ones(4).long()
    rows, biases = (torch.randn(3, 5), torch.randn(3)), [torch.randn(4), torch.randn(1)]
    head = *rows, [torch.randn(4, 6), torch.randn(1, 4)], biases, torch.empty(0), "silu"

    def call():
        y, _ = masked_linear.masked_linear(*layer, "silu")
        score_head.score_head(*head)
        return y

    before, ran = call(), []

    def timer(call):
        call()
        with launch.recorded() as launches:
            call()
        ran.append([(entry.constants.get("PRODUCT"), entry.options["num_warps"]) for entry in launches])
        return [3.0, 1.0, 2.0][(len(ran) - 1) % 3]

    found = tuning.tune(call, timer=timer)
    linear, narrow = configurations.LINEAR[4, "tf32x3"], configurations.HEAD["score_head"]["small", "tf32x3"]
    assert list(found.values()) == [linear[1], narrow[1]]
    assert [(entry[1][0][:3], entry[1][1]) for entry in ran[:3]] == [(one[:3], one.warps) for one in linear]
    assert [entry[2][1] for entry in ran[3:]] == [one.warps for one in narrow]
    assert choices.best == found
    torch.testing.assert_close(call(), before)


def test_tuning_keeps_what_it_had_when_a_call_fails(choices):
    layer = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4), torch.ones(5).long(), torch.ones(4).long()

    def failing(call):
        raise KeyError("timer")

    with pytest.raises(KeyError, match="timer"):
        tuning.tune(lambda: masked_linear.masked_linear(*layer, "silu"), timer=failing)
    assert choices.best == {}
    assert choices.asked is None

    for error in (OutOfResources(1, 0, "shared memory"), launch.DoesNotFit("nothing fits")):

        def too_large(call, error=error):
            raise error

        found = tuning.tune(lambda: masked_linear.masked_linear(*layer, "silu"), timer=too_large)
        assert list(found.values()) == [configurations.LINEAR[4, "tf32x3"][0]]
        assert choices.best == {}


def test_no_tuning_during_a_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"):
        tuning.tune(lambda: None)


@pytest.mark.parametrize("op", [*configurations.HEAD, "another"])
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3", "bf16x6"])
@pytest.mark.parametrize("widths", [(5,), (128, 128), (130, 512)])
def test_every_candidate_of_a_head_covers_it(op, precision, widths):
    candidates = configurations.head_candidates(op, precision, widths)
    assert len(set(candidates)) == len(candidates) >= 2
    block = configurations.chunk(widths)
    for tiles in candidates:
        spec = configurations.head_spec(tiles, 33, 32, 16, widths, "silu", precision)
        found = spec.M, spec.B, spec.BI
        assert found == (tiles.rows, min(tiles.chunk, block), min(tiles.first, block))
        assert spec.STRIDE == 66


def test_the_first_candidate_that_fits_is_taken(monkeypatch):
    candidates = [configurations.Tiles(*sizes) for sizes in ((64, 64, 8), (64, 64, 4), (32, 64, 4))]
    monkeypatch.setattr(launch, "head_candidates", lambda *_: candidates)
    one = meta(1)

    def judge(entry):
        return launch.Fit(shared=entry.options["num_warps"] * entry.constants["S"].M, available=256)

    with launch.recorded(judge) as launches:
        csm_loss.csm_loss(*head(1000, (128, 128)), one, one, one, True, True, True)
    assert launches[0].constants["S"].M == 64
    assert launches[0].options["num_warps"] == 4


def test_a_long_compilation_is_announced(monkeypatch, capsys):
    with launch.announced(csm_loss.csm_loss_kernel):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(launch, "PATIENCE", 0.05)
    with launch.announced(csm_loss.csm_loss_kernel):
        time.sleep(0.5)
    assert "compiling csm_loss_kernel" in capsys.readouterr().err


def test_what_fits_nowhere_is_refused_in_a_sentence():
    one = meta(1)
    with (
        launch.recorded(lambda _: launch.Fit(shared=2, available=1)),
        pytest.raises(launch.DoesNotFit, match="2 bytes of shared memory, a program has 1"),
    ):
        csm_loss.csm_loss(*head(1000, (128, 128)), one, one, one, True, True, True)


def test_constants_are_made_once_and_kept():
    make = [(value, 2.0, dtype) for value in range(200) for dtype in (torch.float32, torch.float64)]
    first = [launch.constant((a, b), dtype, torch.device("cpu")) for a, b, dtype in make]
    again = [launch.constant((a, b), dtype, torch.device("cpu")) for a, b, dtype in make]
    assert all(a is b for a, b in zip(first, again))
    assert first[3].dtype is torch.float64
    assert first[3].tolist() == [1.0, 2.0]
    lines = launch.constant(((1.0, 2.0), (3.0, 4.0)), torch.float32, torch.device("cpu"))
    assert torch.equal(lines, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def reach(in_degrees, out_degrees, forward):
    tile = 4
    tiles = -(-(len(out_degrees) if forward else len(in_degrees)) // tile)
    return masked_linear._reach(in_degrees, out_degrees, tiles, tile, forward).tolist()


def test_loops_cover_the_staircase_only():
    ins, outs = torch.arange(1, 11), torch.tensor([0, 0, 1, 2, 3, 5, 5, 6, 9])
    assert reach(ins, outs, True) == [[2, 0], [6, 3], [9, 9]]
    assert reach(ins, outs, False) == [[2, 5], [5, 8], [8, 9]]
    shuffled = ins.flip(0)
    assert reach(shuffled, outs, True) == [[10, 0], [10, 0], [10, 0]]
    assert reach(torch.zeros(3).long(), torch.ones(2).long(), True) == [[3, 3]]
    assert reach(torch.ones(3).long(), torch.zeros(2).long(), True) == [[0, 0]]
