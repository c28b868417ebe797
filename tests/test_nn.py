import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import fastcsm
from fastcsm import functional
from fastcsm.nn import ARCSM, MADE, MaskedLinear, NoiseSchedule, ScoreHead

NETWORKS = st.fixed_dictionaries(
    {
        "features": st.integers(1, 7),
        "hidden": st.lists(st.integers(1, 20), min_size=1, max_size=3),
        "context": st.integers(1, 4),
        "residual": st.booleans(),
        "shuffled": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


def build(features, hidden, context, residual, shuffled, seed):
    torch.manual_seed(seed)
    order = torch.randperm(features).tolist() if shuffled else None
    hidden = [hidden[0]] * len(hidden) if residual else hidden
    made = MADE(features, hidden, context, order=order, activation="tanh", residual=residual)
    return made.double()


def small(noise=None, objective="csm", activation="silu", dropout=0.0):
    conditional = noise is not None and noise.form == "conditional"
    made = MADE(4, (16, 16), 3, activation=activation, dropout=dropout)
    return ARCSM(
        made, ScoreHead(3 + conditional, (8, 8), activation), noise=noise, objective=objective
    ).double()


class Around(torch.nn.Module):
    """A context network that is no MADE to look at."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


@pytest.fixture
def linear_losses(monkeypatch):
    """One entry for each call of functional.linear_csm_loss."""
    calls = []
    function = functional.linear_csm_loss

    def run(*args, **options):
        calls.append(1)
        return function(*args, **options)

    monkeypatch.setattr(functional, "linear_csm_loss", run)
    return calls


class TestMADE:
    @given(NETWORKS)
    def test_context_depends_on_earlier_variables_only(self, network):
        made = build(**network)
        x = torch.randn(2, made.features, dtype=torch.float64)
        base = made(x)
        assert base.shape == (2, made.features, made.context_features)
        for k, variable in enumerate(made.order):
            changed = x.clone()
            changed[:, variable] += 1.5
            difference = (made(changed) - base).abs().amax((0, 2))
            assert all(difference[earlier] == 0 for earlier in made.order[: k + 1])

    @given(NETWORKS)
    def test_gradients_outside_the_mask_are_exactly_zero(self, network):
        made = build(**network)
        made(torch.randn(3, made.features, dtype=torch.float64)).square().sum().backward()
        for layer in [*made.layers, made.output]:
            outside = layer.in_degrees > layer.out_degrees[:, None]
            assert (layer.weight[outside] == 0).all()
            assert (layer.weight.grad[outside] == 0).all()

    @pytest.mark.parametrize("residual", [False, True])
    def test_every_earlier_variable_is_used(self, residual):
        made = MADE(6, (40, 40), 2, order=[3, 0, 5, 1, 4, 2], activation="tanh", residual=residual).double()
        jacobian = torch.autograd.functional.jacobian(made, torch.randn(6, dtype=torch.float64))
        for k, variable in enumerate(made.order):
            used = jacobian[variable].abs().sum(0).nonzero().flatten().tolist()
            assert used == sorted(made.order[:k])

    def test_degrees_are_sorted_and_even(self):
        made = MADE(5, (10, 7), 2)
        for layer in made.layers:
            degrees = layer.out_degrees
            assert (degrees.diff() >= 0).all()
            assert set(degrees.tolist()) == {1, 2, 3, 4}
            counts = degrees.bincount()[1:]
            assert counts.max() - counts.min() <= 1
        assert made.output.out_degrees.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]

    def test_one_variable_has_a_bias_for_context(self):
        made = MADE(1, (8,), 3)
        a, b = made(torch.tensor([[0.0], [9.0]]))
        assert torch.equal(a, b)
        torch.testing.assert_close(a[0], made.output.bias)

    def test_plain_layers_are_the_formula(self):
        made = MADE(3, (6, 5), 2, activation="relu").double()
        x = torch.randn(4, 3, dtype=torch.float64)
        h = x
        for layer in made.layers:
            h = (h @ layer.weight.T + layer.bias).relu()
        expected = (h @ made.output.weight.T + made.output.bias).reshape(4, 3, 2)
        torch.testing.assert_close(made(x), expected)

    def test_residual_blocks_are_the_formula(self):
        made = MADE(3, (6, 6), 2, activation="relu", residual=True).double()
        first, one, two = made.layers
        x = torch.randn(4, 3, dtype=torch.float64)
        h = x @ first.weight.T + first.bias
        h = h + (h.relu() @ one.weight.T + one.bias).relu() @ two.weight.T + two.bias
        expected = (h.relu() @ made.output.weight.T + made.output.bias).reshape(4, 3, 2)
        torch.testing.assert_close(made(x), expected)

    def test_dropout_works_in_training_only(self):
        made = MADE(5, (64,), 2, dropout=0.5)
        x = torch.randn(3, 5)
        assert not torch.equal(made(x), made(x))
        made.eval()
        assert torch.equal(made(x), made(x))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"features": 0}, "features must be at least 1, got 0"),
            ({"hidden_features": ()}, "hidden_features must be at least 1"),
            ({"context_features": 0}, "context_features must be at least 1"),
            ({"order": [0, 1, 1]}, r"order must be a permutation of range\(3\), got \[0, 1, 1\]"),
            (
                {"hidden_features": (4, 5), "residual": True},
                "hidden_features must all be equal when residual",
            ),
            ({"activation": "swish"}, "activation must be one of"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MADE(**({"features": 3, "hidden_features": (4,), "context_features": 2} | arguments))


class TestIncremental:
    @given(NETWORKS)
    def test_contexts_are_those_of_the_full_pass(self, network):
        made = build(**network)
        x = torch.randn(3, made.features, dtype=torch.float64)
        expected = made(x)
        evaluator = made.incremental(3)
        for k, variable in enumerate(made.order):
            assert evaluator.known == k
            context = evaluator.context(k)
            torch.testing.assert_close(context, expected[:, variable], rtol=1e-12, atol=1e-12)
            evaluator.feed(x[:, variable])
        for k in reversed(range(made.features)):
            torch.testing.assert_close(evaluator.context(k), expected[:, made.order[k]])

    @pytest.mark.parametrize("residual", [False, True])
    def test_all_contexts_cost_one_masked_forward_pass(self, residual):
        made = MADE(10, (30, 30, 30), 4, residual=residual)
        evaluator = made.incremental(5)
        with FlopCounterMode(display=False) as counter:
            for k in range(10):
                evaluator.context(k)
                evaluator.feed(torch.randn(5))
        edges = sum(
            int((layer.in_degrees <= layer.out_degrees[:, None]).sum())
            for layer in (*made.layers, made.output)
        )
        assert counter.get_total_flops() == 2 * 5 * edges

    def test_dtype_mode_gradients_and_no_bias(self):
        made = MADE(4, (16,), 2, dropout=0.5, order=[2, 0, 3, 1])
        made.output.bias = None
        evaluator = made.incremental(2, dtype=torch.float64)
        x = torch.randn(2, 4)
        for k in range(3):
            evaluator.feed(x[:, made.order[k]])
        context = evaluator.context(3)
        assert context.dtype == torch.float64
        assert not context.requires_grad
        torch.testing.assert_close(context.float(), made.eval()(x)[:, 1])

    def test_bad_use(self):
        made = MADE(3, (4,), 2)
        evaluator = made.incremental(5)
        with pytest.raises(ValueError, match="k must be at most 0, the number of known variables, got 1"):
            evaluator.context(1)
        with pytest.raises(ValueError, match=r"k must be in \[0, 3\), got 3"):
            evaluator.context(3)
        with pytest.raises(ValueError, match=r"value must have shape \(5,\), got \(4,\)"):
            evaluator.feed(torch.zeros(4))
        for _ in range(3):
            evaluator.feed(torch.zeros(5))
        with pytest.raises(ValueError, match="feed was called with all 3 variables known"):
            evaluator.feed(torch.zeros(5))
        made.layers[0].out_degrees[0] = 2
        with pytest.raises(ValueError, match="hidden units sorted by degree"):
            made.incremental(5)


def test_masked_linear_module():
    layer = MaskedLinear([1, 2, 3], [2, 1], activation="gelu", bias=False)
    assert layer.bias is None
    assert (layer.weight != 0).tolist() == [[True, True, False], [True, False, False]]
    x = torch.randn(2, 3)
    expected = functional.masked_linear(
        x, layer.weight, None, layer.in_degrees, layer.out_degrees, activation="gelu"
    )
    assert torch.equal(layer(x), expected)


class TestScoreHead:
    def test_is_the_functional(self):
        head = ScoreHead(5, (9, 7), "gelu", 4)
        context, x = torch.randn(3, 2, 5), torch.randn(3, 2)
        arguments = context, x, head.weights, head.biases
        options = {"activation": "gelu", "frequencies": head.frequencies}
        s, ds = functional.score_head(*arguments, **options)
        assert torch.equal(head(context, x), functional.score(*arguments, **options))
        torch.testing.assert_close(head(context, x), s)
        assert torch.equal(head.score_and_derivative(context, x)[0], s)
        assert torch.equal(head.score_and_derivative(context, x)[1], ds)
        assert [tuple(w.shape) for w in head.weights] == [(9, 14), (7, 9), (1, 7)]
        assert all(w is layer.weight for w, layer in zip(head.weights, head.layers))

    def test_frequencies_are_a_buffer_from_the_generator(self):
        def draw(seed):
            generator = torch.Generator().manual_seed(seed)
            return ScoreHead(2, (4,), frequencies=2000, frequency_scale=3.0, generator=generator).frequencies

        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))
        assert abs(draw(1).std() - 3) < 0.2
        head = ScoreHead(2, (4,), frequencies=5)
        assert "frequencies" in head.state_dict()
        assert "frequencies" not in dict(head.named_parameters())
        assert ScoreHead(2, (4,), frequencies=0).frequencies.shape == (0,)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"context_features": -1}, "context_features must be at least 0, got -1"),
            ({"hidden_features": ()}, "hidden_features must be at least 1, got 0"),
            ({"hidden_features": (4, 0)}, "hidden_features must be at least 1, got 0"),
            ({"frequencies": -2}, "frequencies must be at least 0, got -2"),
            ({"activation": "mish"}, "activation must be one of"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ScoreHead(**({"context_features": 2} | arguments))


class TestNoiseSchedule:
    def test_levels_are_geometric(self):
        sigmas = NoiseSchedule(2.0, 0.02, 5).sigmas
        assert sigmas[0] == 2.0
        assert sigmas[-1] == 0.02
        ratios = [b / a for a, b in pairwise(sigmas)]
        assert ratios == pytest.approx([ratios[0]] * 4)
        assert NoiseSchedule(0.3, 0.3, 1).sigmas == [0.3]

    def test_samples_come_from_the_levels_or_between(self):
        noise = NoiseSchedule(1.0, 0.1, 3)
        drawn = noise.sample((4000,), torch.Generator().manual_seed(0), dtype=torch.float64)
        values, counts = drawn.unique(return_counts=True)
        torch.testing.assert_close(values.flip(0), torch.tensor(noise.sigmas, dtype=torch.float64))
        assert (counts / 4000 - 1 / 3).abs().max() < 0.04
        drawn = NoiseSchedule(1.0, 0.1, 3, continuous=True).sample((4000,), torch.Generator().manual_seed(0))
        assert 0.1 <= drawn.min() < 0.101
        assert 0.99 < drawn.max() <= 1.0
        assert abs(drawn.log10().mean() + 0.5) < 0.02

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sigma_min": 0.0}, "sigma_min must be in"),
            ({"sigma_min": 2.0}, "sigma_min must be in"),
            ({"levels": 0}, "levels must be"),
            ({"levels": 1}, "levels must be 1 if sigma_max = sigma_min"),
            ({"form": "both"}, "form must be 'conditional' or 'staged', got 'both'"),
            ({"form": "staged", "continuous": True}, "continuous must be False"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            NoiseSchedule(**arguments)


class TestARCSM:
    @pytest.mark.parametrize("shuffled", [False, True])
    def test_scores_are_autoregressive(self, shuffled):
        order = [2, 0, 3, 1] if shuffled else None
        model = ARCSM(MADE(4, (32, 32), 3, order=order, activation="tanh"), ScoreHead(3, (8,))).double()
        x = torch.randn(2, 4, dtype=torch.float64)
        base = model.score(x)
        for k, variable in enumerate(model.context_net.order):
            changed = x.clone()
            changed[:, variable] += 1.0
            moved = (model.score(changed) != base).any(0)
            assert not any(moved[earlier] for earlier in model.context_net.order[:k])
            assert all(moved[later] for later in model.context_net.order[k:])

    def test_loss_without_noise_is_the_formula(self):
        model = small()
        x = torch.randn(5, 4, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x: model.score(x).sum(0), x)
        s, ds = model.score(x), torch.einsum("dbd->bd", jacobian)
        torch.testing.assert_close(model.csm_loss(x), (s**2 / 2 + ds).sum() / 5)

    @pytest.mark.parametrize("objective", ["csm", "denoising"])
    @pytest.mark.parametrize("form", ["conditional", "staged"])
    def test_loss_with_noise_is_the_formula(self, form, objective):
        noise = NoiseSchedule(1.0, 0.1, 3, form=form)
        model = small(noise, objective)
        x = torch.randn(5, 4, dtype=torch.float64)
        z_hat, z, sigma = model.draw_noise(x.shape, torch.Generator().manual_seed(1), dtype=torch.float64)
        assert z.shape == z_hat.shape == sigma.shape == x.shape
        context, x_noisy = model.context_net(x + 0.1 * z_hat), x + sigma * z
        if form == "conditional":
            assert sigma.unique().numel() == 3
            context = torch.cat([context, sigma.log()[..., None]], -1)
            scale, weight = 1 / sigma, sigma**2
        else:
            assert (sigma == 1.0).all()
            scale = weight = torch.ones_like(sigma)
        s, ds = (scale * v for v in model.head.score_and_derivative(context, x_noisy))
        rows = s**2 / 2 + ds if objective == "csm" else (s + z / sigma) ** 2 / 2
        expected = (weight * rows).sum() / 5
        torch.testing.assert_close(model.csm_loss(x, noise=(z_hat, z, sigma)), expected)
        by_generator = model.csm_loss(x, torch.Generator().manual_seed(1))
        torch.testing.assert_close(by_generator, expected)

    def test_loss_has_gradients_for_every_parameter(self):
        model = small(NoiseSchedule())
        model.csm_loss(torch.randn(5, 4, dtype=torch.float64)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name

    @pytest.mark.parametrize("residual", [False, True])
    @pytest.mark.parametrize(
        ("form", "objective"),
        [
            (None, "csm"),
            ("conditional", "csm"),
            ("conditional", "denoising"),
            ("staged", "csm"),
            ("staged", "denoising"),
        ],
    )
    def test_loss_without_the_context_is_the_loss_with_it(self, form, objective, residual, linear_losses):
        noise = NoiseSchedule(1.0, 0.1, 3, form=form) if form else None
        made = MADE(6, (16, 16), 3, order=[4, 0, 5, 2, 1, 3], activation="gelu", residual=residual)
        model = ARCSM(made, ScoreHead(3 + (form == "conditional"), (8,)), noise=noise, objective=objective)
        model.double()
        whole = ARCSM(Around(made), model.head, noise=noise, objective=objective)
        x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
        drawn = model.draw_noise(x.shape, dtype=torch.float64) if noise else None
        leaves = [x, *model.parameters()]
        expected = whole.csm_loss(x, noise=drawn)
        assert linear_losses == []
        loss = model.csm_loss(x, noise=drawn)
        assert len(linear_losses) == 1
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)

    @pytest.mark.filterwarnings("ignore:the score head runs")
    def test_the_context_is_formed_where_it_must_be(self, linear_losses):
        x = torch.randn(5, 4, dtype=torch.float64)
        model = small(NoiseSchedule())
        calls = []
        for module in (model.context_net, model.context_net.output):
            handle = module.register_forward_hook(lambda *_: calls.append(1))
            model.csm_loss(x)
            handle.remove()
        assert len(calls) == 2
        leaky = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LeakyReLU(), torch.nn.Linear(8, 1))
        by_hand = ARCSM(small().context_net, leaky.double())
        expected = fastcsm.csm_loss(leaky, by_hand.context_net(x), x)
        torch.testing.assert_close(by_hand.csm_loss(x), expected)
        assert linear_losses == []
        model.csm_loss(x)
        assert len(linear_losses) == 1

    def test_score_at_a_noise_level(self):
        model = small(NoiseSchedule(1.0, 0.1, 3))
        x = torch.randn(5, 4, dtype=torch.float64)
        assert torch.equal(model.score(x), model.score(x, sigma=0.1))
        context = model.context_net(x)
        level = torch.full((5, 4, 1), math.log(0.7), dtype=torch.float64)
        expected = model.head(torch.cat([context, level], -1), x) / 0.7
        torch.testing.assert_close(model.score(x, sigma=0.7), expected)
        with pytest.raises(ValueError, match="sigma must be positive"):
            model.score(x, sigma=0.0)
        with pytest.raises(ValueError, match="sigma must be None unless"):
            small().score(x, sigma=0.5)

    def test_stages(self):
        model = small(NoiseSchedule(1.0, 0.1, 3, form="staged"), dropout=0.5)
        x = torch.randn(5, 4, dtype=torch.float64)
        first = copy.deepcopy(model.head.state_dict())
        model.advance_stage()
        assert model.stage == 1
        assert model.draw_noise((2, 4))[2][0, 0] == pytest.approx(0.1**0.5)
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.add_(1.0)
        kept = model.stages[0]["head"]
        assert all(torch.equal(value, first[name]) for name, value in kept.state_dict().items())
        assert not any(p.requires_grad for p in model.stages.parameters())
        model.train()
        assert not any(module.training for module in model.stages.modules())
        model.csm_loss(x).backward()
        model.advance_stage()
        with pytest.raises(RuntimeError, match="last of 3 levels"):
            model.advance_stage()
        with pytest.raises(RuntimeError, match="form 'staged'"):
            small().advance_stage()

    def test_a_state_dict_brings_its_stages(self):
        schedule = NoiseSchedule(1.0, 0.1, 3, form="staged")
        model, fresh = small(schedule), small(schedule)
        model.advance_stage()
        fresh.load_state_dict(model.state_dict())
        assert fresh.stage == 1
        assert len(fresh.stages) == 1
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in fresh.state_dict().items())
        fresh.advance_stage()
        fresh.load_state_dict(model.state_dict())
        assert len(fresh.stages) == 1
        holder, other = torch.nn.ModuleDict({"m": model}), torch.nn.ModuleDict({"m": small(schedule)})
        other.load_state_dict(holder.state_dict())
        assert other["m"].stage == 1

    def test_a_sequential_head(self):
        layers = torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        model = ARCSM(MADE(4, (8,), 3), torch.nn.Sequential(*layers), noise=NoiseSchedule())
        assert model.csm_loss(torch.randn(6, 4)).isfinite()
        assert model.score(torch.randn(6, 4)).shape == (6, 4)

    @pytest.mark.parametrize(
        ("noise", "options"),
        [
            (NoiseSchedule(1.0, 0.1, 3), {}),
            (NoiseSchedule(1.0, 0.1, 3, form="staged"), {}),
            (None, {"step_size": 0.1}),
        ],
    )
    def test_a_seed_means_the_same_samples_for_any_batch(self, noise, options):
        model = small(noise)
        while model.staged and model.stage < 2:
            model.advance_stage()
        whole = model.sample(7, seed=3, steps=2, **options)
        assert whole.shape == (7, 4)
        assert whole.dtype == torch.float64
        torch.testing.assert_close(model.sample(7, seed=3, steps=2, batch_size=3, **options), whole)
        torch.testing.assert_close(model.sample(4, seed=3, steps=2, **options), whole[:4])
        with fastcsm.backend("reference"):
            torch.testing.assert_close(model.sample(7, seed=3, steps=2, **options), whole)
        assert (model.sample(7, seed=4, steps=2, **options) - whole).abs().min() > 1e-6

    def test_bad_arguments(self):
        made, head = MADE(4, (8,), 3), ScoreHead(3, (8,))
        with pytest.raises(ValueError, match="objective must be 'csm' or 'denoising', got 'ssm'"):
            ARCSM(made, head, objective="ssm")
        with pytest.raises(ValueError, match="noise must be a NoiseSchedule when objective is 'denoising'"):
            ARCSM(made, head, objective="denoising")
        with pytest.raises(ValueError, match=r"head must have 4 context features .*log sigma\), got 3"):
            ARCSM(made, head, noise=NoiseSchedule())
        model = ARCSM(made, head)
        with pytest.raises(ValueError, match=r"x must have shape \(B, D\), got \(4,\)"):
            model.csm_loss(torch.randn(4))
        with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch\.int64"):
            model.csm_loss(torch.ones(2, 4, dtype=torch.int64))
        with pytest.raises(TypeError, match="u must be a floating-point tensor, got list"):
            model.quantile([[0.5]])
        with pytest.raises(ValueError, match="x must have shape"):
            model.csm_loss(torch.randn(2, 5))
        with pytest.raises(RuntimeError, match="draw_noise needs a model with a NoiseSchedule"):
            model.draw_noise((2, 4))
        with pytest.raises(
            ValueError, match="method must be 'flow', 'inverse_cdf' or 'langevin', got 'mcmc'"
        ):
            model.sample(2, method="mcmc")
        with pytest.raises(
            ValueError, match="method is 'flow', expected a model whose noise schedule is cond"
        ):
            model.sample(2, method="flow")
        with pytest.raises(ValueError, match="steps is 3, expected none with method 'flow'"):
            model.sample(2, method="flow", steps=3)
        with pytest.raises(ValueError, match="given must have shape"):
            model.sample(2, step_size=0.1, given=torch.zeros(2, 9), known=1)
        with pytest.raises(ValueError, match="method must be one of quadrature, flow, got 'exact'"):
            model.log_prob(torch.zeros(2, 4), "exact")
        with pytest.raises(ValueError, match=r"data_range must be two finite numbers in order, got \(1, 1\)"):
            model.data_range = (1, 1)

    def test_the_training_step_compiles_whole(self):
        model = small(NoiseSchedule(1.0, 0.1, 3))
        x = torch.randn(6, 4, dtype=torch.float64)
        noise = model.draw_noise(x.shape, dtype=torch.float64)
        parameters = list(model.parameters())
        expected = torch.autograd.grad(model.csm_loss(x, noise=noise), parameters)
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, noise: model.csm_loss(x, noise=noise), fullgraph=True)
        for a, b in zip(torch.autograd.grad(compiled(x, noise), parameters), expected):
            torch.testing.assert_close(a, b)

    def test_samples_of_the_true_score_have_the_true_moments(self):
        made = MADE(2, (4,), 1)
        head = ScoreHead(1, (2,), "relu", frequencies=0)
        with torch.no_grad():
            made.output.bias.fill_(0.5)
            for parameter in head.parameters():
                parameter.zero_()
            head.layers[0].weight[:, 1] = torch.tensor([1.0, -1.0])
            head.layers[1].weight[0] = torch.tensor([-4.0, 4.0])
            head.layers[1].bias.fill_(2.0)
        x = ARCSM(made, head).sample(8000, seed=1, steps=120, step_size=0.02)
        assert (x.mean(0) - 0.5).abs().max() < 0.03
        assert (x.std(0) - 0.5).abs().max() < 0.03
