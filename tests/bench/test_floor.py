"""What is counted, what the machine can do at most, and the floor of both."""

from dataclasses import replace

import pytest
from small import MODELS

from fastcsm.bench.harness import floor
from fastcsm.bench.harness.report import format_table
from fastcsm.bench.micro.registry import (
    CASES,
    CsmLoss,
    Draw,
    ExactDraw,
    FlowOfRows,
    Langevin,
    LogDensity,
    ScoresOfRows,
)


def test_counted_operations_of_models():
    dense = 7 * 9 + 9 * 11 + 11 * 21
    first, second, last = (
        sum(i <= o for i in inputs for o in outputs)
        for inputs, outputs in [
            (range(1, 8), [1 + k * 6 // 9 for k in range(9)]),
            ([1 + k * 6 // 9 for k in range(9)], [1 + k * 6 // 11 for k in range(11)]),
            ([1 + k * 6 // 11 for k in range(11)], [k // 3 for k in range(21)]),
        ]
    )
    edges = first + second + last
    assert 0.4 * dense < edges < 0.7 * dense
    forward, both, step, draw, staged = (
        case.operations() for case in MODELS if not case.op.startswith(("conditional", "probability"))
    )
    assert forward == 2 * 5 * edges
    assert both == 2 * 5 * (3 * edges - first)
    assert step == 2 * 4 * (3 * edges - first) + 4 * 7 * 2 * (3 * 3 * 6 + 6 * 6 * 5)
    langevin = 5 * 7 * 3 * 2 * 2 * 6 * 6
    assert staged - langevin == 3 * (draw - langevin)


def test_counted_operations():
    n = 50176
    assert CsmLoss().operations() == n * 2 * (3 * 32 * 128 + 6 * 128 * 128)
    assert CsmLoss(frequencies=16).operations() == n * 2 * (3 * 32 * 128 + 6 * 128 * 128 + 4 * 32 * 128)
    assert CsmLoss(rows=1, context=5, hidden=(2, 3, 4)).operations() == 2 * (3 * 5 * 2 + 6 * (6 + 12))
    assert CsmLoss(rows=1, context=5, hidden=(2,)).operations() == 2 * 3 * 5 * 2
    plain = CsmLoss(rows=1, context=5, hidden=(2, 3, 4), denoising=True)
    assert plain.operations() == 2 * (3 * 5 * 2 + 3 * (6 + 12))
    assert replace(plain, frequencies=2).operations() == 2 * (3 * 5 * 2 + 3 * (6 + 12) + 2 * 4 * 2)
    steps = Langevin(rows=3, context=5, hidden=(2, 7), levels=4, steps=6)
    assert steps.operations() == 3 * 2 * (24 * 14 + 5 * 2)
    assert replace(steps, frequencies=2).operations() == 3 * 2 * (24 * (14 + 4 * 2) + 5 * 2)


def test_counted_bytes():
    head = 4 * 6 + 6 + 6 + 1
    assert CsmLoss(rows=9, context=3, hidden=(6,)).bytes() == 4 * (9 * (3 + 1 + 3) + 2 * head)
    assert CsmLoss(rows=9, context=3, hidden=(6,), dtype="bfloat16").bytes() == 2 * (9 * 7 + 2 * head)
    assert CsmLoss(rows=9, context=3, hidden=(6,), denoising=True).bytes() == 4 * (9 * 8 + 2 * head)
    sizes = {"rows": 9, "context": 3, "hidden": (6,)}
    assert ScoresOfRows(**sizes).bytes() == 4 * (9 * (3 + 1 + 2) + head)
    assert ScoresOfRows(**sizes, backward=True).bytes() == 4 * (9 * (3 + 1 + 2 + 2 + 3) + 2 * head)
    assert Langevin(**sizes).bytes() == LogDensity(**sizes).bytes() == 4 * (9 * (2 + 2) + head)
    assert FlowOfRows(**sizes).bytes() == 4 * (9 * (2 + 3) + head)
    first, backward, step = MODELS[:3]
    parameters = first.operations() / (2 * 5) + 9 + 11 + 21
    assert first.bytes() == 4 * (5 * 7 + 5 * 7 * 3 + parameters)
    assert backward.bytes() == 4 * (5 * 7 + 2 * (5 * 7 * 3 + parameters))
    dense = 7 * 9 + 9 * 11 + 11 * 21 + 9 + 11 + 21
    assert step.bytes() == 4 * (4 * 7 + 6 * (dense + 4 * 6 + 6 * 5 + 5 + 6 + 5 + 1))
    draw, staged = MODELS[-2:]
    assert staged.bytes() - 4 * 5 * 7 == 3 * (draw.bytes() - 4 * 5 * 7 - 4 * 6)


def test_matrix_calls_count_their_operations():
    calls = floor.matrix_calls("float32", "float32", 8, (6, 4, 4))
    assert {name: count for name, (count, _) in calls.items()} == {"8 x 8 x 8": 1024.0, "6 x 4 x 4": 192.0}
    assert calls["6 x 4 x 4"][1]().shape == (6, 4)


#: Operations of a turn of the loop.
TURN = {"float64": 50, "float32": 100, "bfloat16": 400}
QUICK = [*dict.fromkeys(case.quick().warm() for kind in CASES.values() for case in kind().variants())]
TYPES = [CsmLoss(rows=8, context=3, hidden=(4, 5), dtype=dtype) for dtype in ("float64", "bfloat16")]


class Clock:
    """A clock that stands still but for the loop, of which a turn takes a microsecond, and for itself."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-3
        return self.now

    def loop(self, arithmetic, turns):
        self.now += 1e-6 * turns
        return float(TURN[arithmetic] * turns)


@pytest.fixture
def limits(monkeypatch):
    """Limits of a case; a call of torch.mm takes a second, or three."""
    clock = Clock()
    monkeypatch.setattr(floor, "peak_loop", lambda: clock.loop)
    monkeypatch.setattr(floor, "perf_counter", clock)

    def made(case):
        contenders = case.contenders(["highest", "medium"], compiled=False)
        found = floor.Limits(case, contenders.values(), square=8)
        for call in found.calls.values():
            call()
        return contenders, found, found.measured({name: [3.0, 1.0, 3.0] for name in found.calls})

    return made


def rate(arithmetic):
    """What the loop does, with a millisecond of the clock's."""
    return TURN[arithmetic] * floor.TURNS / (1e-6 * floor.TURNS + 1e-3)


@pytest.mark.parametrize("case", [*QUICK, *TYPES], ids=lambda case: case.title()[:60])
def test_a_floor_is_of_the_contenders_own_arithmetic_and_operations(case, limits):
    contenders, found, measured = limits(case)
    bandwidth = 8 * max(1, case.bytes() // 8) / 1e-3
    assert measured["peaks"] == pytest.approx(
        {arithmetic: rate(arithmetic) for arithmetic in measured["peaks"]}
    )
    assert measured["bandwidth"] == pytest.approx(bandwidth)
    counted = []
    for contender in contenders.values():
        arithmetic = case.dtype
        if contender.precision == "medium" and case.dtype == "float32":
            arithmetic = "bfloat16"
        operations = contender.operations or case.operations()
        counted.append(operations)
        share = found.shares(contender, 5.0, measured)
        least = max(operations / rate(arithmetic), case.bytes() / bandwidth)
        assert share["arithmetic"] == arithmetic
        assert share["floor_seconds"] == pytest.approx(least)
        assert share["floor_multiple"] == pytest.approx(5.0 / least)
        m, k, n = case.matrix_shape()
        seconds = 3.0 * operations / max(2 * m * k * n, 2 * 8**3)
        assert share["mm_multiple"] == pytest.approx(5.0 / seconds)
        assert share.get("operations", case.operations()) == operations
    assert min(counted) == case.operations()


def test_rounding_is_no_slower_than_not_rounding(limits, monkeypatch):
    monkeypatch.setitem(TURN, "bfloat16", 70)
    _, _, measured = limits(TYPES[1])
    assert measured["peaks"] == {"bfloat16": pytest.approx(rate("float32"))}


def test_without_the_library_torch_stands_in(monkeypatch):
    monkeypatch.setattr(floor, "peak_loop", lambda: "no compiler")
    case = QUICK[0]
    found = floor.Limits(case, case.contenders(["highest"], compiled=False).values(), square=64)
    assert not any(name.endswith("peak") for name in found.calls)
    measured = found.measured({name: [2.0, 1.0, 4.0] for name in found.calls})
    assert measured["peaks_of_mm"] == "no compiler"
    assert measured["peaks"] == {"float32": 2.0 * 64 * 128 * 128}
    assert "the peak is torch.mm's: no compiler" in format_table({**measured, "title": "", "rows": []})


def test_each_way_counts_its_own_work():
    case = FlowOfRows(rows=1, context=5, hidden=(2, 3), steps=8)
    fixed, own = case.contenders(["highest"], compiled=False).values()
    assert case.operations() == 13 * 2 * 2 * 6 + 2 * 5 * 2
    assert (fixed.operations, own.operations) == (32 * 2 * 2 * 6 + 2 * 5 * 2, None)
    case = LogDensity(rows=1, context=5, hidden=(2, 3))
    fixed, own = case.contenders(["highest"], compiled=False).values()
    assert case.operations() == 4 * 16 * 2 * 6 + 2 * 5 * 2
    assert (fixed.operations, own.operations) == (8 * 16 * 2 * 6 + 2 * 5 * 2, None)
    case = MODELS[5]
    assert isinstance(case, ExactDraw)
    counted = {n: entry.operations for n, entry in case.contenders(["highest"], compiled=False).items()}
    node = 5 * 6 * 2 * 36  # of all variables
    assert counted["loop"] == counted["fastcsm"] == case.operations()
    assert counted["inverse_cdf"] == case.operations() + (32 - 3 * 2) * node
    assert counted["flow"] == counted["inverse_cdf"] + 13 * node
    assert ExactDraw().operations() == ExactDraw(steps=1000).operations() < Draw().operations()


@pytest.mark.parametrize(("moved", "size", "times"), [(0, 8, 1000), (3000, 3000, 349), (1e12, 1 << 20, 1)])
def test_copies_are_of_the_size_of_the_case(moved, size, times, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(floor, "COPIED", 1 << 20)
    monkeypatch.setattr(floor, "perf_counter", clock)
    call = floor.copies(moved)
    call()
    assert call.rate == pytest.approx(size / 1e-3)
    assert clock.now == pytest.approx(2e-3 * times)
