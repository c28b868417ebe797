import copy
import math

import pytest
import torch

import fastcsm
from fastcsm import functional
from fastcsm.nn import ARCSM, MADE, NoiseSchedule, ScoreHead


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


class Gaussian(torch.nn.Module):
    """A head whose density at any level is a Gaussian around a tenth of the context's sum."""

    def forward(self, inputs):
        *context, _, x = inputs.unbind(-1)
        return 0.1 * sum(context) - x


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
        torch.testing.assert_close(model.loss(x), (s**2 / 2 + ds).sum() / 5)

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
        torch.testing.assert_close(model.loss(x, noise=(z_hat, z, sigma)), expected)
        by_generator = model.loss(x, torch.Generator().manual_seed(1))
        torch.testing.assert_close(by_generator, expected)

    def test_loss_has_gradients_for_every_parameter(self):
        model = small(NoiseSchedule())
        model.loss(torch.randn(5, 4, dtype=torch.float64)).backward()
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
        expected = whole.loss(x, noise=drawn)
        assert linear_losses == []
        loss = model.loss(x, noise=drawn)
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
            model.loss(x)
            handle.remove()
        assert len(calls) == 2
        leaky = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LeakyReLU(), torch.nn.Linear(8, 1))
        by_hand = ARCSM(small().context_net, leaky.double())
        expected = fastcsm.csm_loss(leaky, by_hand.context_net(x), x)
        torch.testing.assert_close(by_hand.loss(x), expected)
        assert linear_losses == []
        model.loss(x)
        assert len(linear_losses) == 1

    def test_score_at_a_noise_level(self):
        model = small(NoiseSchedule(1.0, 0.1, 3))
        x = torch.randn(5, 4, dtype=torch.float64)
        assert torch.equal(model.score(x), model.score(x, sigma=0.1))
        context = model.context_net(x)
        level = torch.full((5, 4, 1), math.log(0.7), dtype=torch.float64)
        expected = model.head(torch.cat([context, level], -1), x) / 0.7
        torch.testing.assert_close(model.score(x, sigma=0.7), expected)
        assert torch.equal(model.score(x, sigma=torch.tensor(0.5)), model.score(x, sigma=0.5))
        for value in (0.0, math.inf):
            with pytest.raises(ValueError, match=f"sigma must be a positive number, got {value}"):
                model.score(x, sigma=value)
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
        model.loss(x).backward()
        model.advance_stage()
        with pytest.raises(RuntimeError, match="last of 3 levels"):
            model.advance_stage()
        with pytest.raises(RuntimeError, match="form 'staged'"):
            small().advance_stage()

    @pytest.mark.filterwarnings("ignore:the score head runs", "ignore:.*weight_norm.*:FutureWarning")
    def test_a_stage_keeps_what_it_was(self):
        model = small(NoiseSchedule(1.0, 0.1, 2, form="staged"))
        layer = torch.nn.utils.weight_norm(model.head.layers[0])
        x = torch.randn(5, 4, dtype=torch.float64)
        model.loss(x).backward()
        before = model.score(x).detach()
        model.advance_stage()
        with torch.no_grad():
            layer.weight_g *= 2
        kept = ARCSM(model.stages[0].context_net, model.stages[0].head)
        assert torch.equal(kept.score(x), before)
        assert not torch.equal(model.score(x), before)
        other = small(NoiseSchedule(1.0, 0.1, 2, form="staged"))
        original = other.head.layers[1].forward
        other.head.layers[1].forward = lambda h: 2 * original(h)
        with pytest.raises(ValueError, match=r"that of layers\.1 would run the function put in place"):
            other.advance_stage()

    def test_being_called_is_the_loss(self):
        model = small(NoiseSchedule())
        x = torch.randn(5, 4, dtype=torch.float64)
        noise = model.draw_noise(x.shape, dtype=torch.float64)
        assert torch.equal(model(x, noise=noise), model.loss(x, noise=noise))

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

    def test_a_part_of_a_state_leaves_the_stages(self):
        model = small(NoiseSchedule(1.0, 0.1, 3, form="staged"))
        model.advance_stage()
        head = {f"head.{name}": value + 1 for name, value in model.head.state_dict().items()}
        model.load_state_dict(head, strict=False)
        assert model.stage == 1
        assert all(torch.equal(model.state_dict()[name], value) for name, value in head.items())

    def test_a_sequential_head(self):
        layers = torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        model = ARCSM(MADE(4, (8,), 3), torch.nn.Sequential(*layers), noise=NoiseSchedule())
        assert model.loss(torch.randn(6, 4)).isfinite()
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
        with pytest.raises(
            ValueError, match="objective must be 'csm', 'denoising' or 'likelihood', got 'ssm'"
        ):
            ARCSM(made, head, objective="ssm")
        with pytest.raises(ValueError, match="noise must be a NoiseSchedule when objective is 'denoising'"):
            ARCSM(made, head, objective="denoising")
        with pytest.raises(ValueError, match=r"head must have 4 context features .*log sigma\), got 3"):
            ARCSM(made, head, noise=NoiseSchedule())
        model = ARCSM(made, head)
        with pytest.raises(ValueError, match=r"x must have shape \(B, D\), got \(4,\)"):
            model.loss(torch.randn(4))
        with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch\.int64"):
            model.loss(torch.ones(2, 4, dtype=torch.int64))
        with pytest.raises(TypeError, match="u must be a floating-point tensor, got list"):
            model.quantile([[0.5]])
        with pytest.raises(ValueError, match="x must have shape"):
            model.loss(torch.randn(2, 5))
        assert model.draw_noise((2, 4)) == ()
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

    def test_the_likelihood_loss_is_of_rows_as_contexts_see_them(self):
        model = ARCSM(MADE(4, (16,), 3), Gaussian(), noise=NoiseSchedule(0.5, 0.1, 3)).double()
        x = torch.randn(3, 4, dtype=torch.float64)
        noise = model.draw_noise(x.shape, dtype=torch.float64)
        for given, rows in (((), x), (noise, x + 0.1 * noise[0])):
            expected = -model.log_prob(rows, "quadrature")
            assert expected.isfinite().all()
            assert torch.equal(model.likelihood_loss(x, given, "none"), expected)
            assert torch.equal(model.likelihood_loss(x, given), expected.mean())
        for wrong in ("sum", None):
            with pytest.raises(ValueError, match=f"reduction must be 'mean' or 'none', got {wrong!r}"):
                model.likelihood_loss(x, noise, wrong)

    def test_the_training_step_compiles_whole(self):
        model = small(NoiseSchedule(1.0, 0.1, 3))
        x = torch.randn(6, 4, dtype=torch.float64)
        noise = model.draw_noise(x.shape, dtype=torch.float64)
        parameters = list(model.parameters())
        expected = torch.autograd.grad(model.loss(x, noise=noise), parameters)
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, noise: model.loss(x, noise=noise), fullgraph=True)
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
