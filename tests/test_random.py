import math

import numpy as np
import pytest
import torch

from fastcsm import random

# Published with Random123 (kat_vectors, philox4x32 10): counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter, key, result):
    key = tuple(words(key))
    by_torch = random.philox4x32(tuple(torch.tensor([word]) for word in words(counter)), key)
    by_numpy = random.philox4x32(tuple(np.array([word], dtype=np.uint64) for word in words(counter)), key)
    assert [word.item() for word in by_torch] == words(result)
    assert [word.item() for word in by_numpy] == words(result)
    assert all(word.dtype == np.uint64 for word in by_numpy)


def philox_in_python(counter, key):
    """The generator in unbounded integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p, q = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (q >> 32) ^ c1 ^ k0, q % 2**32, (p >> 32) ^ c3 ^ k1, p % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def normal_in_python(seed, sample, dimension, step):
    counter = (step, dimension, sample % 2**32, sample >> 32)
    w0, w1, _, _ = philox_in_python(counter, (seed % 2**32, seed >> 32))
    u1 = max(float(np.float32(w0)), 0.5) / 2**32
    u2 = (w1 >> 8) / 2**24
    return math.sqrt(-2 * math.log(u1)) * math.cos(2 * math.pi * u2)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 + 11, 2**64 - 1])
def test_noise_rule(seed):
    samples = torch.tensor([0, 1, 2**31, 2**32, 2**32 + 1, 2**48 - 1])
    dimensions = torch.tensor([0, 1, 783, 2**16, 2**31, 2**32 - 1])
    for step in (0, 1, 2**32 - 1):
        expected = [normal_in_python(seed, int(s), int(d), step) for s, d in zip(samples, dimensions)]
        got = random.normal(seed, samples, dimensions, step, torch.float64)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-13)
        single = random.normal(seed, samples, dimensions, step)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), got, rtol=0, atol=5e-6)


def test_a_negative_seed_is_the_same_bits():
    s, d = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(random.normal(-1, s, d, 3), random.normal(2**64 - 1, s, d, 3))


@pytest.mark.parametrize("seed", [np.int32(7), np.int64(7), np.uint64(2**63 + 11), torch.tensor(7)])
def test_a_seed_may_be_an_integer_of_any_kind(seed):
    s, d = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(random.normal(seed, s, d, 3), random.normal(int(seed), s, d, 3))


def test_uniform_rule():
    samples, dimension = torch.tensor([5, 2**33]), torch.tensor(7)
    got = random.uniform(3, samples, dimension, 2, torch.float64)
    expected = []
    for sample in (5, 2**33):
        w0, *_ = philox_in_python((2, 7, sample % 2**32, (sample >> 32) + 2**16), (3, 0))
        expected.append(((w0 >> 9) + 0.5) / 2**23)
    assert got.tolist() == expected
    assert torch.equal(random.uniform(3, samples, dimension, 2, torch.float32).double(), got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_moments_and_dtypes(dtype):
    samples, dimensions = torch.arange(500)[:, None], torch.arange(400)
    z = random.normal(1, samples, dimensions, 0, dtype)
    assert z.dtype == dtype
    assert z.shape == (500, 400)
    z = z.double()
    assert z.isfinite().all()
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.015
    assert abs((z**4).mean() - 3) < 0.1
    assert abs((z[1:] * z[:-1]).mean()) < 0.01
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 0.01
    u = random.uniform(1, samples, dimensions, 0, torch.float32)
    assert 0 < u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_uniforms_of_16_bits_are_below_1(dtype):
    u = random.uniform(1, torch.arange(20_000), torch.tensor(0), 0, dtype)
    exact = random.uniform(1, torch.arange(20_000), torch.tensor(0), 0)
    assert 0 < u.min() < u.max() < 1
    assert (u - exact).abs().max() <= torch.finfo(dtype).eps / 2


def test_extreme_words_stay_finite(monkeypatch):
    for w0, z in ((0, 6.7637), (2**32 - 1, 0.0)):
        extreme = tuple(torch.tensor([w]) for w in (w0, 0, 0, 0))
        monkeypatch.setattr(random, "philox4x32", lambda *_, words=extreme: words)
        got = random.normal(0, torch.tensor([0]), torch.tensor([0]), 0)
        assert got.item() == pytest.approx(z, abs=1e-3)
