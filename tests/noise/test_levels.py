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
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            NoiseSchedule(**arguments)
