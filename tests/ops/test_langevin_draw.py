"""langevin_draw: the whole autoregressive draw, every backend against the float64 reference."""

import pytest
import torch
from support import backend_params

import fastcsm
from fastcsm.nn import MADE, ScoreHead
from fastcsm.ops.langevin import langevin_draw

BACKENDS = backend_params("langevin_draw")
TRITON = backend_params("langevin_draw", "triton")[1:]
SIZES, SCALES = [0.3, 0.1, 0.03], [1.0, 2.0, 3.0]


class Draw:
    """Arguments of one draw; ``models`` is 1, or 3 for the staged form."""

    def __init__(
        self,
        features=7,
        hidden=(19, 23),
        models=1,
        features_of_stages=False,
        order=None,
        residual=False,
        frequencies=3,
        made_activation="tanh",
    ):
        torch.manual_seed(0)
        self.features, self.residual, self.stages = features, residual, features_of_stages
        self.made = [
            MADE(features, hidden, 5, order=order, activation=made_activation, residual=residual)
            for _ in range(models)
        ]
        self.heads = [
            ScoreHead(5 + features_of_stages, (33, 20), frequencies=frequencies) for _ in range(models)
        ]
        self.frequencies = self.heads[0].frequencies

    def run(self, backend, dtype=torch.float64, x=None, storage=None, batch=37, **options):
        """The draw in ``dtype``, of x and parameters rounded to ``storage``."""
        storage = storage or dtype
        given = {"first": 0, "last": self.features, "denoise": 0.02, "sample": 5, "seed": 77, "steps": 4}
        assert options.keys() <= given.keys()
        first, last, denoise, sample, seed, steps = (given | options).values()
        layers = [[*made.layers, made.output] for made in self.made]

        def cast(tensors):
            return [t.detach().to(storage).to(dtype) for t in tensors]

        if x is None:
            x = torch.linspace(-1, 1, batch * self.features).reshape(batch, self.features).sin()
        with fastcsm.backend(backend):
            return langevin_draw(
                x.to(storage).to(dtype),
                cast(w for head in self.heads for w in head.weights),
                cast(b for head in self.heads for b in head.biases),
                self.frequencies.to(storage).to(dtype),
                "silu",
                cast(layer.weight for network in layers for layer in network),
                cast(layer.bias for network in layers for layer in network),
                [layer.out_degrees for layer in self.made[0].layers],
                torch.tensor(self.made[0].order),
                self.made[0].activation,
                self.residual,
                SIZES,
                SCALES,
                [0.1, -0.4, -1.0] if self.stages else [],
                steps,
                seed,
                torch.arange(sample, sample + len(x)),
                first,
                last,
                denoise,
            )


FORMS = {
    "one": {},
    "conditional": {"features_of_stages": True},
    "staged": {"models": 3},
    "residual": {"hidden": (19, 19, 19), "residual": True},
    "order": {"order": [3, 0, 6, 1, 5, 2, 4]},
    "no_frequencies": {"frequencies": 0},
    "narrow": {"hidden": (3,)},
    "single_variable": {"features": 1},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_same_draw_as_the_float64_reference(form, backend):
    draw = Draw(**FORMS[form])
    for exact, got in zip(draw.run("reference"), draw.run(backend), strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-11)
    for exact, got, plain in zip(
        draw.run("reference"),
        draw.run(backend, torch.float32),
        draw.run("reference", torch.float32),
        strict=True,
    ):
        error, own = (got.double() - exact).norm(), (plain.double() - exact).norm()
        assert error <= 2 * own + 1e-6 * exact.norm()


FEW_VARIABLES = {
    "conditional": {"features_of_stages": True, "order": [2, 0, 1]},
    "staged_residual": {"models": 3, "hidden": (19, 19, 19), "residual": True, "frequencies": 0},
    "deep": {"hidden": (3, 70, 5)},
    "single_variable": {"features": 1},
}


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize("form", FEW_VARIABLES)
def test_triton_draws_the_same(form, backend):
    draw = Draw(**({"features": 3} | FEW_VARIABLES[form]))
    few = {"batch": 17, "steps": 1, "sample": 2**33}
    exact = draw.run("reference", **few)
    for got, expected in zip(draw.run(backend, **few), exact, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    if form == "conditional":
        plain = draw.run("reference", torch.float32, **few)
        for got, own, expected in zip(draw.run(backend, torch.float32, **few), plain, exact, strict=True):
            error, allowed = (got.double() - expected).norm(), 2 * (own.double() - expected).norm()
            assert error <= allowed + 1e-6 * expected.norm()


@pytest.mark.parametrize("backend", TRITON)
def test_triton_draws_in_parts_and_reads_nothing_else(backend):
    draw, few = Draw(features=3, order=[1, 2, 0]), {"batch": 2, "steps": 1}
    whole, clean = draw.run(backend, **few)
    x, cleaned = torch.full((2, 3), torch.nan, dtype=torch.float64), torch.zeros_like(clean)
    for first, last in ((0, 1), (1, 1), (1, 3)):
        x, part = draw.run(backend, x=x, first=first, last=last, **few)
        places = draw.made[0].order[first:last]
        cleaned[:, places] = part[:, places]
    torch.testing.assert_close(x, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(cleaned, clean, rtol=0, atol=1e-12)
    undisturbed, same = draw.run(backend, denoise=0.0, **few)
    assert torch.equal(undisturbed, whole)
    assert torch.equal(same, whole)
    assert draw.run(backend, batch=0)[0].shape == (0, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_denoising_both_results_are_the_draw(backend):
    x, clean = Draw().run(backend, denoise=0.0)
    assert x.abs().max() > 0
    assert torch.equal(x, clean)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_parts_it_is_the_same_draw(backend):
    draw = Draw(order=[3, 0, 6, 1, 5, 2, 4])
    whole, clean = draw.run(backend)
    x, cleaned = None, torch.zeros_like(clean)
    for first, last in ((0, 1), (1, 4), (4, 7)):
        x, part = draw.run(backend, x=x, first=first, last=last)
        places = draw.made[0].order[first:last]
        cleaned[:, places] = part[:, places]
    torch.testing.assert_close(x, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(cleaned, clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_variables_stay_and_the_rest_is_not_read(backend):
    draw = Draw()
    x = torch.randn(6, 7, dtype=torch.float64)
    poisoned = x.clone()
    poisoned[:, 3:] = torch.nan
    got, _ = draw.run(backend, x=poisoned, first=3)
    assert torch.equal(got[:, :3], x[:, :3])
    torch.testing.assert_close(got, draw.run(backend, x=x, first=3)[0], rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_sample_does_not_depend_on_its_batch_or_the_threads(backend, batch, threads):
    draw = Draw(features_of_stages=True)
    x = torch.zeros(batch, 7)
    whole = draw.run(backend, torch.float32, x=x)[0]
    threads(2, own=batch % 2 == 1)
    again = draw.run(backend, torch.float32, x=x)[0]
    alone = draw.run(backend, torch.float32, x=x[-1:], sample=5 + batch - 1)[0]
    assert torch.equal(again, whole)
    assert torch.equal(alone, whole[-1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_empty_range(backend):
    draw = Draw()
    assert draw.run(backend, batch=0)[0].shape == (0, 7)
    x = torch.randn(3, 7, dtype=torch.float64)
    assert torch.equal(draw.run(backend, x=x, first=4, last=4)[0], x)
