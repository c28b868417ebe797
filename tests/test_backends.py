import importlib.util
import threading

import pytest
import torch

import fastcsm
from fastcsm import backends, functional, nn
from fastcsm.backends import Request

REQUEST = Request("cpu", torch.float32, (8, 1))


class Recorder:
    """A backend that runs the reference and remembers what it ran."""

    name = "recorder"

    def __init__(self, refusal=None):
        self.ran = []
        self.refusal = refusal

    def missing(self):
        return []

    def refuses(self, op, request):
        return [self.refusal] if self.refusal else []

    def implementation(self, op):
        function = backends.Reference().implementation(op)

        def run(*args):
            self.ran.append(op)
            return function(*args)

        return run


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(backends, "_backends", dict(backends._backends))
    monkeypatch.setattr(backends, "_selected", {})
    recorder = Recorder()
    backends.register(recorder)
    return recorder


def loss():
    head = nn.ScoreHead(2, (4,))
    return fastcsm.csm_loss(head, torch.randn(3, 2, 2), torch.randn(3, 2))


def test_names():
    assert backends.chosen() == "auto"
    for name in ("auto", "reference", "cpu", "triton", "cuda"):
        with fastcsm.backend(name):
            assert backends.chosen() == name
    assert backends.chosen() == "auto"
    with (
        pytest.raises(ValueError, match=r"backend must be one of auto, .*reference.*, got 'gpu'"),
        fastcsm.backend("gpu"),
    ):
        pass


def test_nesting_and_errors_restore_the_choice():
    with fastcsm.backend("reference"):
        with pytest.raises(KeyError), fastcsm.backend("cpu"):
            raise KeyError
        assert backends.chosen() == "reference"


def test_the_choice_belongs_to_the_thread():
    seen = []
    with fastcsm.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.chosen()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.parametrize("name", ["cuda"])
def test_an_explicit_choice_that_cannot_run_raises(name):
    with (
        fastcsm.backend(name),
        pytest.raises(RuntimeError, match=f"backend '{name}' cannot run csm_loss: no CUDA device"),
    ):
        loss()


def test_the_error_has_every_reason(monkeypatch):
    monkeypatch.setattr(backends, "_backends", dict(backends._backends))
    monkeypatch.setattr(backends, "_selected", {})
    cpu = backends.CPU()
    monkeypatch.setattr(cpu, "missing", lambda: [])
    backends.register(cpu)
    request = Request("cuda", torch.float16, (8,) * 6 + (1,))
    with fastcsm.backend("cpu"), pytest.raises(RuntimeError) as caught:
        backends.select("csm_loss", request)
    message = str(caught.value)
    assert "on cuda" in message
    assert "torch.float16 is not one of" in message
    assert "6 hidden layers are more than 4" in message
    monkeypatch.setattr(cpu, "ops", ("csm_loss",))
    with fastcsm.backend("cpu"), pytest.raises(RuntimeError, match="it has no masked_linear"):
        backends.select("masked_linear", REQUEST)
    with (
        fastcsm.backend("cpu"),
        pytest.raises(RuntimeError, match="cannot run linear_csm_loss: it has no mas"),
    ):
        backends.select("linear_csm_loss", REQUEST)
    assert backends.select("csm_loss", request) is backends.Reference().implementation("csm_loss")


def test_a_missing_library_is_named_and_auto_falls_back(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "_backends", dict(backends._backends))
    monkeypatch.setattr(backends, "_selected", {})
    cpu = backends.CPU()
    broken = tmp_path / "_cpu.abi3.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "path", lambda: broken)
    backends.register(cpu)
    assert loss().isfinite()
    with fastcsm.backend("cpu"), pytest.raises(RuntimeError, match=r"_cpu\.abi3\.so does not load"):
        loss()
    assert fastcsm.info()["ops"]["csm_loss"]["cpu"]["backend"] == "reference"
    absent = backends.CPU()
    monkeypatch.setattr(absent, "path", lambda: None)
    assert "is not built" in absent.missing()[0]


def test_auto_falls_back_for_what_no_kernel_supports():
    head = nn.ScoreHead(2, (4, 4, 4, 4, 4)).half()
    context, x = torch.randn(3, 2, 2).half(), torch.randn(3, 2).half()
    by_auto = fastcsm.csm_loss(head, context, x)
    with fastcsm.backend("reference"):
        assert torch.equal(by_auto, fastcsm.csm_loss(head, context, x))
    assert by_auto.isfinite()


def test_a_registered_backend_is_chosen_before_the_reference(recorder, monkeypatch):
    monkeypatch.setitem(backends._backends, "cpu", backends.Absent("cpu", "hidden"))
    backends._selected.clear()
    loss().backward()
    assert recorder.ran == ["csm_loss"]
    recorder.refusal = "too small"
    backends._selected.clear()
    loss()
    assert recorder.ran == ["csm_loss"]
    with (
        fastcsm.backend("recorder"),
        pytest.raises(RuntimeError, match="'recorder' cannot run csm_loss: too small"),
    ):
        loss()


def test_an_op_that_a_backend_lacks_is_composed_of_its_others(recorder, monkeypatch):
    monkeypatch.setitem(backends._backends, "cpu", backends.Absent("cpu", "hidden"))
    monkeypatch.setattr(recorder, "refuses", lambda op, _: ["no"] if op == "linear_csm_loss" else [])
    backends._selected.clear()
    model = nn.ARCSM(nn.MADE(3, (4,), 2), nn.ScoreHead(2, (4,)))
    model.csm_loss(torch.randn(5, 3)).backward()
    assert recorder.ran[1:4] == ["masked_linear", "csm_loss", "masked_linear_backward_into"]
    monkeypatch.setattr(recorder, "refuses", lambda op, _: ["no"] if op == "csm_loss" else [])
    backends._selected.clear()
    recorder.ran.clear()
    model.csm_loss(torch.randn(5, 3)).backward()
    assert "linear_csm_loss" in recorder.ran


def test_a_later_backend_replaces_the_absent_one(recorder):
    recorder.name = "triton"
    backends.register(recorder)
    loss()
    assert recorder.ran == ["csm_loss"]


def test_auto_is_not_a_backend_name(recorder):
    recorder.name = "auto"
    with pytest.raises(ValueError, match="must not be 'auto'"):
        backends.register(recorder)


def test_backward_runs_on_the_choice_of_the_forward(recorder):
    head = nn.ScoreHead(2, (4,))
    made = nn.MADE(2, (4,), 2)
    with fastcsm.backend("recorder"):
        x = torch.randn(3, 2)
        score = head(made(x), x)
    with fastcsm.backend("reference"):
        score.sum().backward()
    assert recorder.ran.count("score_head_backward") == 1
    assert recorder.ran.count("masked_linear_backward") == 2


def test_the_choice_is_made_when_compiled_code_runs(recorder):
    def f(x, weight, bias, *degrees):
        return functional.masked_linear(x, weight, bias, *degrees)

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    degrees = torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    args = torch.randn(2, 3), torch.randn(3, 3), torch.randn(3), *degrees
    compiled(*args)
    assert recorder.ran.count("masked_linear") <= 1
    before = len(recorder.ran)
    with fastcsm.backend("recorder"):
        compiled(*args)
    assert len(recorder.ran) == before + 1
    with fastcsm.backend("reference"):
        compiled(*args)
    assert len(recorder.ran) == before + 1


def test_info():
    info = fastcsm.info()
    assert info["versions"]["fastcsm"] == fastcsm.__version__
    assert info["versions"]["torch"] == torch.__version__
    assert set(info["ops"]) == set(backends.OPS)
    text = str(info)
    for op, devices in info["ops"].items():
        assert op in text
        for entry in devices.values():
            assert entry["backend"] not in entry["not"]
            assert len(entry["not"]["triton"]) >= 1
    built = not backends.CPU().missing()
    assert {entry["cpu"]["backend"] for entry in info["ops"].values()} == {"cpu" if built else "reference"}
    assert set(info["environment"]) == {"FASTCSM_BUILD"}
    assert "FASTCSM_BUILD" in text


def test_a_tree_without_its_kernels_says_so(monkeypatch):
    """As a raw copy of the sources is, in which kernels/ is beside the package."""
    pytest.importorskip("triton")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fastcsm.kernels" else find(name)
    )
    reason = "its kernels are not importable: install fastcsm, or link fastcsm/kernels to kernels/"
    assert backends.Triton().missing() == [reason]


@pytest.mark.parametrize(("limit", "refused"), [(101_376, True), (166_912, False)])
def test_what_fits_no_program_of_a_device_is_refused(limit, refused, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(backends.Triton, "interpreted", staticmethod(lambda: False))
    monkeypatch.setattr(backends.Triton, "shared_bytes", lambda self: limit)
    for dtype, widths in (
        (torch.float32, (512, 512, 1)),
        (torch.bfloat16, (512, 512, 1)),
        (torch.float32, (128, 1)),
    ):
        reasons = backends.Triton().refuses("csm_loss", backends.Request("cuda", dtype, widths, 66))
        exact = dtype is torch.float32 and widths[0] == 512
        assert reasons == ["it needs 160 KiB of shared memory, a program has 99"] * (refused and exact)
