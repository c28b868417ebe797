"""An average of models: a density, its draws, its training, and runs of it."""

import math

import pytest
import torch

from fastcsm import data, training
from fastcsm.evaluation import anomaly_scores, evaluate, likelihood
from fastcsm.nn import Average, MixtureMADE
from fastcsm.training import PRESETS, Config

SMALL = {"hidden": (12,), "context_features": 4, "head_hidden": (8,)}
TABLE = PRESETS["table"] | SMALL


def table(features=3, orders=3, dtype="float64", **own):
    return Config(**(TABLE | {"orders": orders, "dtype": dtype} | own)).build(features).eval()


def mixtures(orders=((0, 1), (1, 0))):
    torch.manual_seed(0)
    return Average(MixtureMADE(2, (16,), 3, order=order).double() for order in orders).eval()


def test_density_is_the_mean_of_the_models():
    average, x = table(), torch.randn(7, 3, dtype=torch.float64)
    rows = [model.log_density(x) for model in average.models]
    log_q = torch.stack([part.log_density.sum(1) for part in rows])
    found = average.log_density(x)
    assert found.log_density.shape == found.error.shape == (7, 1)
    torch.testing.assert_close(average.log_prob(x).exp(), log_q.exp().mean(0), rtol=1e-10, atol=0)
    errors = torch.stack([part.error.sum(1) for part in rows])
    assert (found.error[:, 0] <= errors.amax(0)).all()
    assert (found.error[:, 0] >= errors.amin(0)).all()
    noise = average.draw_noise(x.shape)
    rows = torch.stack([model.noisy_log_prob(x, noise) for model in average.models])
    torch.testing.assert_close(average.noisy_log_prob(x, noise).exp(), rows.exp().mean(0))


def test_mass_is_one_and_draws_are_of_the_density():
    average = mixtures()
    line = torch.linspace(-12.0, 12.0, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    density = average.log_prob(grid).exp() * (line[1] - line[0]) ** 2
    assert abs(density.sum().item() - 1) < 1e-3
    drawn = average.sample(20_000, seed=1)
    for a, b in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)):

        def moment(x, a=a, b=b):
            return (a * x[:, 0]).tanh() + (b * x[:, 1]).sin() * x[:, 0].tanh()

        values = moment(drawn)
        expected = (moment(grid) * density).sum()
        assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values))


def test_the_models_share_no_random_numbers():
    """Two equal models: pairs of their draws are as independent as those of one."""
    torch.manual_seed(0)
    one = MixtureMADE(1, (4,), 2).double()
    average = Average([one, one])
    drawn = average.sample(4000, seed=5)[:, 0]
    assert len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize("method", ["flow", "langevin"])
def test_a_seed_means_the_same_samples(method):
    average, told = table(dtype="float32"), []
    options = {"steps": 2} if method == "langevin" else {}
    whole = average.sample(40, method, seed=3, progress=lambda *done: told.append(done), **options)
    parts = [average.sample(n, method, seed=3, first_sample=k, **options) for k, n in ((0, 15), (15, 25))]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert told[-1] == (9, 9)
    assert all(done <= whole for done, whole in told)
    assert average.sample(0).shape == (0, 3)
    torch.testing.assert_close(
        average.sample(5, method, seed=3, progress=True, known=0, **options), whole[:5]
    )


def test_orders_are_the_given_one_its_reverse_and_others():
    orders = [model.context_net.order for model in table(5, 4).models]
    assert orders[:2] == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]
    assert len(set(map(tuple, orders))) == 4
    shuffled = [model.context_net.order for model in table(5, 2, order="random").models]
    assert shuffled[0] == shuffled[1][::-1] == table(5, 1, order="random").context_net.order
    alone, first = (table(3, orders, seed=2) for orders in (1, 2))
    for (name, value), other in zip(alone.state_dict().items(), first.models[0].state_dict().values()):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("objective", ["likelihood", "denoising"])
def test_it_trains_as_each_model_does_alone(objective):
    average, x = table(objective=objective, denoise_first=0.0), torch.randn(9, 3, dtype=torch.float64)
    noise = average.draw_noise(x.shape, torch.Generator().manual_seed(0), dtype=x.dtype)
    average.loss(x, noise=noise).backward()
    by_flow = objective == "likelihood"
    expected = -average.log_prob(x).mean() if by_flow else average.loss(x, noise=noise)
    torch.testing.assert_close(average.held_out_loss(x, noise=noise), expected)
    for model in average.models:
        found = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        model.loss(x, noise=noise).backward()
        for gradient, parameter in zip(found, model.parameters()):
            torch.testing.assert_close(3 * gradient, parameter.grad)


def test_what_is_watched_is_the_objective_also_while_denoising_comes_first():
    average, x = table(objective="csm", denoise_first=0.5), torch.randn(9, 3, dtype=torch.float64)
    noise = average.draw_noise(x.shape, torch.Generator().manual_seed(0), dtype=x.dtype)
    expected = torch.stack([model.csm_loss(x, noise=noise) for model in average.models]).mean()
    average.go_on(0.0)
    assert abs(average.loss(x, noise=noise) - expected) > 0.1
    torch.testing.assert_close(average.held_out_loss(x, noise=noise), expected)


def test_a_run_of_several_orders(tmp_path):
    own = {"orders": 2, "data": "two_spirals", "validation": 0.1, "steps": 4, "batch_size": 8}
    config = Config(**(TABLE | own))
    rows = data.load("two_spirals", validation=0.1)
    training.train(config, rows, tmp_path / "run", quiet=True)
    model = training.load(tmp_path / "run")
    assert isinstance(model, Average)
    assert model.models[0].data_range == rows.transform.data_range
    x = rows.held_out("test", 0, 8)
    assert evaluate(model, x) == []
    with pytest.raises(ValueError, match="sigmas is given, expected none for an average"):
        evaluate(model, x, sigmas=[0.1])
    assert likelihood(model, x)["diverged"] == 0
    assert anomaly_scores(model, x)["score_sum"].shape == (8,)


def test_stages_go_on_together():
    model = Config(**SMALL, noise="staged", levels=3, orders=2).build(2)
    model.go_on(0.5)
    assert model.stage == 1
    assert [part.stage for part in model.models] == [1, 1]
    assert model.stage_fraction(0.5) == pytest.approx(0.5)


def test_bad_input():
    with pytest.raises(ValueError, match="models must be one or more, got none"):
        Average([])
    with pytest.raises(TypeError, match="models must be fastcsm's, got Linear"):
        Average([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="given must not be there for an average of models"):
        table().sample(2, given=torch.zeros(3), known=1)
    assert torch.isnan(table().log_density(torch.full((1, 3), math.nan)).log_density).all()
