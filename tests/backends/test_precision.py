"""How narrow operands may be, by every setting that torch has for it."""

import pytest
import torch

from fastcsm import functional
from fastcsm.backends.precision import matmul_precision, of_products

DEVICES = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _settings():
    """Torch's settings, which are put back."""
    every = (torch.backends, *DEVICES)
    before = [setting.fp32_precision for setting in every]
    word = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(word)
    for setting, value in zip(every, before, strict=True):
        setting.fp32_precision = value


def mkldnn(value):
    torch.backends.mkldnn.matmul.fp32_precision = value


def cuda(value):
    torch.backends.cuda.matmul.fp32_precision = value


def general(value):
    """For all devices, where they have nothing of their own."""
    torch.backends.fp32_precision = value
    for setting in DEVICES:
        setting.fp32_precision = "none"


SETTINGS = [
    (torch.set_float32_matmul_precision, "highest", "float32", "float32"),
    (torch.set_float32_matmul_precision, "high", "float32", "tf32"),
    (torch.set_float32_matmul_precision, "medium", "bf16", "tf32"),
    (mkldnn, "bf16", "bf16", "float32"),
    (mkldnn, "tf32", "float32", "float32"),
    (cuda, "tf32", "float32", "tf32"),
    (general, "tf32", "float32", "tf32"),
    (general, "bf16", "bf16", "float32"),
    (general, "ieee", "float32", "float32"),
]


@pytest.mark.parametrize(("change", "value", "processor", "gpu"), SETTINGS)
def test_every_setting_is_heard_and_none_raises(change, value, processor, gpu):
    torch.set_float32_matmul_precision("highest")
    head = [torch.randn(70, 5), torch.randn(1, 70)], [torch.randn(70), torch.randn(1)]
    rows = torch.randn(9, 4), torch.randn(9)
    of_words = {}
    for word in ("highest", "medium"):
        with matmul_precision(word):
            of_words[word] = functional.score(*rows, *head)
    change(value)
    assert (of_products("cpu"), of_products("cuda"), of_products("meta")) == (processor, gpu, "float32")
    expected = of_words["medium" if processor == "bf16" else "highest"]
    assert torch.equal(functional.score(*rows, *head), expected)


@pytest.mark.parametrize(("change", "value", "processor", "gpu"), SETTINGS)
def test_a_word_for_a_while_leaves_the_settings_as_they_were(change, value, processor, gpu):
    torch.set_float32_matmul_precision("highest")
    change(value)
    before = [setting.fp32_precision for setting in DEVICES]
    with matmul_precision("medium"):
        assert of_products("cpu") == "bf16"
    assert [setting.fp32_precision for setting in DEVICES] == before
