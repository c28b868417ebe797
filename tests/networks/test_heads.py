import pytest
import torch

from fastcsm import functional
from fastcsm.nn import ScoreHead


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
