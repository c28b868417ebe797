import pytest
import torch

from fastcsm.networks import taught
from fastcsm.nn import ARCSM, MADE, NoiseSchedule, ScoreHead
from fastcsm.reference.preconditioning import SQUASH, squashed

LEVELS = 20.0, 0.01


def shipped():
    head = ScoreHead(33, (64, 64), "silu", frequencies=0)
    taught.load(head)
    return head


def test_exact_is_the_score_of_the_noisy_mixture():
    torch.manual_seed(0)
    description = torch.randn(50, 9, dtype=torch.float64)
    sigma = torch.rand(50, dtype=torch.float64) * 3 + 0.05
    v = torch.randn(50, dtype=torch.float64, requires_grad=True)
    logits, m, log_t = description.unflatten(1, (3, 3)).unbind(1)
    kappa = torch.rsqrt(1 + sigma**2)[:, None]
    deviation = kappa * ((2 * log_t).exp() + sigma[:, None] ** 2).sqrt()
    parts = torch.distributions.Normal(kappa * m, deviation).log_prob(v[:, None])
    log_q = torch.logsumexp(logits.log_softmax(1) + parts, 1)
    (score,) = torch.autograd.grad(log_q.sum(), v)  # s_v = r / sigma - v
    torch.testing.assert_close(taught.exact(description, v.detach(), sigma), sigma * (score + v.detach()))


@torch.no_grad()
def test_the_shipped_head_knows_mixtures_it_has_not_seen():
    torch.manual_seed(7)
    head, noise = shipped(), NoiseSchedule(*LEVELS, continuous=True, power=2.0)
    loss, least = taught._loss(head, noise, 20000)
    over = torch.tensor(LEVELS[0] / LEVELS[1]).log() * (loss - least)
    assert 0 < over < 0.08
    assert over < 0.2 * torch.tensor(LEVELS[0] / LEVELS[1]).log() * -least  # of what F = 0 leaves


def test_teaching_gets_on_and_leaves_other_features_unread():
    torch.manual_seed(0)
    head = ScoreHead(12, (24,), "silu", frequencies=0)
    first = taught.teach(head, LEVELS, steps=2, rows=256)
    assert taught.teach(head, LEVELS, steps=150, rows=256) < 0.8 * first
    with pytest.raises(ValueError, match="at least 9 context features and log sigma, got 5"):
        taught.teach(ScoreHead(6, (24,)), LEVELS)


def test_a_head_of_other_sizes_is_refused():
    for other in (
        ScoreHead(33, (64, 64)),
        ScoreHead(20, (64, 64), "silu", 0),
        ScoreHead(33, (64,), "silu", 0),
    ):
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(
            ValueError, match=r"must be ScoreHead\(33, \(64, 64\), 'silu', 0\) to begin taught"
        ):
            taught.load(other)
        assert all(map(torch.equal, before, other.parameters()))
    with pytest.raises(ValueError, match="silu"):
        taught.load(ScoreHead(33, (64, 64), "tanh", 0))


def test_contexts_begin_with_a_mixture_and_a_model_with_its_density():
    net, head = MADE(3, (16,), 34, activation="silu"), shipped()
    taught.describe(net)
    with torch.no_grad():
        net.output.weight.zero_()
        logits, m, log_t = net(torch.zeros(1, 3))[0, :, :9].unflatten(1, (3, 3)).unbind(1)
        model = ARCSM(net, head, noise=NoiseSchedule(*LEVELS, continuous=True), precondition="moments").eval()
        x = torch.linspace(-5, 5, 401)[:, None].expand(-1, 3)
        found = model.log_density(x).log_density[:, 0]
    assert logits.abs().max() == 0
    parts = torch.distributions.Normal(m[0], log_t[0].exp()).log_prob(x[:, :1])
    expected = torch.logsumexp(parts + logits[0].log_softmax(0), 1)
    nats = torch.trapezoid(expected.exp() * (expected - found), x[:, 0])
    assert -1e-3 < nats < 0.05


def test_the_head_reads_what_it_was_taught_to():
    u, slope = squashed(torch.tensor([0.0, 1.0]), SQUASH)
    assert SQUASH == 2.0
    torch.testing.assert_close((u, slope), (torch.tensor([0.0, 0.96242365]), torch.tensor([1.0, 0.89442719])))
