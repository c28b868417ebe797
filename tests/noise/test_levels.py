import math
from itertools import pairwise

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastcsm.nn import NoiseSchedule


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

    @pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
    def test_powers_draw_small_levels_more_often_with_unbiased_weights(self, power):
        noise = NoiseSchedule(20.0, 0.01, 5, continuous=True, power=power)
        generator = torch.Generator().manual_seed(0)
        drawn = noise.sample((200_000,), generator, dtype=torch.float64)
        assert drawn.min() >= 0.01
        assert drawn.max() <= 20.0
        part = (drawn / 0.01).log() / math.log(2000)
        for at in (0.1, 0.5, 0.8):
            assert ((part < at).double().mean() - at ** (1 / power)).abs() < 0.005
        weight = noise.weight(drawn)
        for function, mean in ((torch.ones_like, 1.0), (lambda t: t, 0.5), (lambda t: (4 * t).sin(), 0.4134)):
            assert abs((function(part) * weight).mean() - mean) < 0.01

    def test_weights_at_the_ends(self):
        noise = NoiseSchedule(20.0, 0.01, 5, continuous=True, power=2.0)
        ends = torch.tensor([0.01, 20.0, 0.01 * (1 - 1e-12)], dtype=torch.float64)
        torch.testing.assert_close(noise.weight(ends), torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64))
        assert NoiseSchedule(20.0, 0.01, 5, continuous=True).weight(ends) == 1
        one = NoiseSchedule(0.3, 0.3, 1, continuous=True, power=2.0)
        assert one.weight(one.sample((3,))) == 1
        assert one.sample((3,)).tolist() == pytest.approx([0.3] * 3)

    def test_what_a_schedule_says_of_itself(self):
        shown = "NoiseSchedule(sigma_max=2.0, sigma_min=0.1, levels=3, form='conditional', continuous=True"
        assert repr(NoiseSchedule(2.0, 0.1, 3, continuous=True)) == shown + ")"
        noise = NoiseSchedule(2.0, 0.1, 3, continuous=True, power=1.5, draws=4)
        assert repr(noise) == shown + ", power=1.5, draws=4)"
        assert (noise.power, noise.draws) == (1.5, 4)

    def test_levels_drawn_in_a_mode_of_fake_tensors_are_not_kept(self):
        noise, generator = NoiseSchedule(1.25, 0.1, 3), torch.Generator()
        for _ in range(2):
            with FakeTensorMode():
                assert noise.sample((5,)).shape == (5,)
            assert set(noise.sample((50,), generator, dtype=torch.float64).tolist()) == set(noise.sigmas)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sigma_min": 0.0}, "sigma_min must be in"),
            ({"sigma_min": 2.0}, "sigma_min must be in"),
            ({"levels": 0}, "levels must be"),
            ({"levels": 1}, "levels must be 1 if sigma_max = sigma_min"),
            ({"form": "both"}, "form must be 'conditional' or 'staged', got 'both'"),
            ({"form": "staged", "continuous": True}, "continuous must be False"),
            ({"continuous": True, "power": 0.5}, "power must be at least 1, .* got 0.5"),
            ({"continuous": True, "power": math.nan}, "power must be at least 1, .* got nan"),
            ({"continuous": True, "power": math.inf}, "power must be at least 1, .* got inf"),
            ({"power": 2.0}, "power must be at least 1, and 1 unless levels are continuous, got 2.0"),
            ({"draws": 0}, "draws must be at least 1, got 0"),
            ({"draws": 2, "form": "staged"}, "draws must be 1 when form is 'staged', got 2"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            NoiseSchedule(**arguments)
