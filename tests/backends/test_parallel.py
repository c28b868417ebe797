"""What calls of the processor's library share with other threads; and that all of them hear signals."""

import os
import signal
import subprocess
import sys
import traceback

import pytest
import torch

import fastcsm
from fastcsm import backends, functional, nn
from fastcsm.backends import libraries
from fastcsm.functional import Head, Network, Stages

pytestmark = pytest.mark.skipif(bool(backends.CPU().missing()), reason="the CPU library is not built")
CONTEXT = 8


def head(width):
    sizes = (width, CONTEXT + 1), (width, width), (1, width)
    return [torch.randn(size) / size[1] for size in sizes], [torch.randn(size[0]) for size in sizes]


def rows(count, width):
    """Contexts and x, and the layers of a head."""
    return torch.randn(count, CONTEXT), torch.randn(count), *head(width)


def with_gradients(function, count, width):
    context, x, weights, biases = rows(count, width)
    weights = [weight.requires_grad_() for weight in weights]
    return lambda: function(context, x, weights, biases).backward()


def score_head(count, width):
    def total(*given):
        return sum(part.sum() for part in functional.score_head(*given))

    return with_gradients(total, count, width)


def csm_loss(count, width):
    return with_gradients(functional.csm_loss, count, width)


def score(count, width):
    given = rows(count, width)
    return lambda: functional.score(*given)


def langevin(count, width):
    given = rows(count, width)
    return lambda: functional.langevin(*given, step_sizes=[0.01] * 4, steps=10)


def probability_flow(count, width):
    given = rows(count, width)
    context = given[0][:, 1:].contiguous()
    return lambda: functional.probability_flow(context, *given[1:], sigma_from=1.0, sigma_to=0.5)


def conditional_density(count, width):
    given = rows(count, width)
    return lambda: functional.conditional_density(*given, low=-3.0, high=3.0, panels=4)


def masked_linear(count, width):
    degrees = torch.arange(1, width + 1)
    x, weight = torch.randn(count, width), torch.randn(width, width, requires_grad=True)
    return lambda: functional.masked_linear(x, weight, None, degrees, degrees).sum().backward()


def network(width):
    made = nn.MADE(4, (width,), CONTEXT)
    layers = [*made.layers, made.output]
    weights, biases = [layer.weight.detach() for layer in layers], [layer.bias.detach() for layer in layers]
    return Network(weights, biases, [layer.out_degrees for layer in made.layers])


def langevin_draw(count, width):
    models = Head(*head(width)), network(width)
    return lambda: functional.langevin_draw(torch.zeros(count, 4), *models, Stages([0.01] * 4, 10))


def conditional_density_draw(count, width):
    models, interval = (Head(*head(width)), network(width)), functional.Interval(-3.0, 3.0)
    return lambda: functional.conditional_density_draw(torch.zeros(count, 4), *models, interval)


#: Of every op a call by its rows and width: (rows, width) that two threads share, and that take seconds.
SIZES = {
    score: ((4096, 128), (1_000_000, 256)),
    score_head: ((512, 128), (200_000, 256)),
    csm_loss: ((512, 128), (200_000, 256)),
    langevin: ((128, 128), (200_000, 128)),
    probability_flow: ((512, 128), (200_000, 128)),
    conditional_density: ((64, 128), (10_000, 128)),
    masked_linear: ((64, 1024), (4096, 4096)),
    langevin_draw: ((64, 128), (40_000, 128)),
    conditional_density_draw: ((16, 128), (4000, 128)),
}
OPS = list(SIZES)


def threads_of(call):
    """The most threads that one call shared its work with."""
    torch.ops.fastcsm_cpu.largest_team()
    call()
    return torch.ops.fastcsm_cpu.largest_team()


@pytest.fixture
def two_threads(threads):
    threads(2, worth=8 << 20)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("two_threads")
def test_small_work_stays_on_the_calling_thread_and_large_work_is_shared(op):
    for count in (1, 2):
        assert threads_of(op(count, 16)) == 1
    assert threads_of(op(*SIZES[op][0])) == 2


@pytest.mark.usefixtures("two_threads")
def test_small_training_steps_stay_on_the_calling_thread():
    for count in (1, 64):
        assert threads_of(csm_loss(count, 128)) == 1


@pytest.fixture
def loss_of_a_module():
    layers = torch.nn.Linear(CONTEXT + 1, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128), torch.nn.SiLU()
    head = torch.nn.Sequential(*layers, torch.nn.Linear(128, 1))
    context, x = torch.randn(2, 3, CONTEXT, requires_grad=True), torch.randn(2, 3)
    for _ in range(2):  # what is kept is made, and the first gradients
        fastcsm.csm_loss(head, context, x).backward()
    return lambda: fastcsm.csm_loss(head, context, x).backward()


def test_a_small_call_asks_torch_for_little(loss_of_a_module):
    """One kernel, and what backward() does: one thing for each of seven gradients, and the first one."""
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        loss_of_a_module()
    names = [event.name for event in profile.function_events]
    assert [name for name in names if name.startswith("fastcsm")] == ["fastcsm_cpu::csm_loss"]
    assert len([name for name in names if name.startswith("aten::")]) <= 16


def test_a_small_call_is_little_python(loss_of_a_module):
    called = []

    def profile(frame, event, _):
        if event == "call" and "fastcsm" in frame.f_globals.get("__name__", ""):
            called.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        loss_of_a_module()
    finally:
        sys.setprofile(None)
    assert len(called) <= 75, called


class Stop(Exception):
    """What a signal's handler raises."""


@pytest.fixture
def alarm():
    """Calls a function again and again while a kernel of the library runs, as a signal's handler."""

    def set_alarm(function):
        def handler(_, frame):
            if libraries.__file__ in [where.f_code.co_filename for where, _ in traceback.walk_stack(frame)]:
                function()

        before.append(signal.signal(signal.SIGALRM, handler))
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)

    before = []
    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before[0])


def assert_ends_inside(call, alarm):
    """An exception of a signal's handler ends the call inside the library, which the traceback tells."""

    def stop():
        raise Stop

    alarm(stop)
    with pytest.raises(Stop) as caught:
        call()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert "raise_interruption" in [frame.name for frame in traceback.extract_tb(caught.tb)]


@pytest.mark.parametrize("op", OPS)
def test_an_exception_of_a_signals_handler_ends_every_op(op, alarm):
    assert_ends_inside(op(*SIZES[op][1]), alarm)
    op(2, 16)()


@pytest.mark.parametrize("own", [False, True])
def test_all_threads_of_a_call_end(own, threads, alarm):
    threads(2, own)
    assert_ends_inside(csm_loss(*SIZES[csm_loss][1]), alarm)


def test_a_handler_that_does_not_raise_lets_the_call_go_on(alarm):
    call, heard = score(300_000, 256), []
    expected = call()
    alarm(lambda: heard.append(True))
    assert torch.equal(call(), expected)
    assert heard


def test_errors_that_no_signal_made_are_as_they_were():
    bad = rows(3, 16)
    with pytest.raises(ValueError, match="weights\\[0\\] has shape"):
        torch.ops.fastcsm_cpu.score_head(
            bad[0], bad[1], [bad[1], bad[1]], bad[3][:2], bad[1][:0], 0, False, False
        )


FORKED = """
import os
import torch
from fastcsm import functional
torch.set_num_threads(2)
given = torch.randn(300, 4), torch.randn(300), [torch.randn(9, 5), torch.randn(1, 9)], [None, None]
expected = functional.score(*given)
for own in (False, True):
    torch.ops.fastcsm_cpu.set_sharing(0.0, own)
    assert torch.equal(functional.score(*given), expected)
    if os.fork() == 0:
        os._exit(0 if torch.equal(functional.score(*given), expected) else 1)
    assert os.wait()[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_of_fork_shares_its_work_with_threads_of_its_own():
    """Of torch's threads it would wait for those its parent has."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=60)
