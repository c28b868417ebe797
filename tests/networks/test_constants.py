import copy
import io

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from fastcsm.nn import ARCSM, MADE, MaskedLinear, MixtureMADE, NoiseSchedule, ScoreHead

ORDER = [3, 1, 0, 2]


def model(order=ORDER, made="silu", head="silu", noise=None):
    return ARCSM(MADE(4, (9, 9), 2, order=order, activation=made), ScoreHead(2, (5,), head), noise=noise)


def test_an_order_is_loaded_with_the_weights():
    trained, loaded = model(), model(order=None)
    options = {"method": "langevin", "step_size": 0.1, "steps": 2}
    assert not torch.equal(trained.sample(3, **options), loaded.sample(3, **options))
    loaded.load_state_dict(trained.state_dict())
    assert loaded.context_net.order == ORDER
    assert torch.equal(loaded.context_net.places, torch.tensor(ORDER))
    assert torch.equal(trained.sample(3, **options), loaded.sample(3, **options))
    mixture, other = MixtureMADE(4, (9,), order=ORDER), MixtureMADE(4, (9,))
    other.load_state_dict(mixture.state_dict(), assign=True)
    assert torch.equal(mixture.sample(3), other.sample(3))
    one_layer = MADE(4, (9, 9), 2, activation="silu")
    one_layer.layers[0].load_state_dict(trained.context_net.layers[0].state_dict())
    assert one_layer.order == ORDER


@pytest.mark.parametrize(
    "average",
    [{"multi_avg_fn": get_ema_multi_avg_fn(0.9999)}, {"avg_fn": get_ema_avg_fn(0.9999)}, {}],
)
def test_the_average_of_equal_models_is_the_model(average):
    noise = NoiseSchedule(1.0, 0.1, 3, form="staged")
    trained = ARCSM(MADE(24, (64, 64), 2), ScoreHead(2, (5,)), noise=noise)
    trained.to_stage(2)
    averaged = AveragedModel(trained, use_buffers=True, **average)
    for _ in range(50):
        averaged.update_parameters(trained)
    expected = trained.state_dict()
    for name, value in averaged.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(value, expected[name]), name
    assert averaged.module.context_net.order == trained.context_net.order


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_an_average_written_into_a_state_leaves_the_constants(decay):
    trained = MADE(24, (64, 64), 2)
    averaged = copy.deepcopy(trained)
    for _ in range(50):
        pairs = zip(averaged.state_dict().values(), trained.state_dict().values(), strict=True)
        with torch.no_grad():
            for value, new in pairs:
                value.copy_(decay * value + (1 - decay) * new)
    for layer, own in zip(averaged.modules(), trained.modules(), strict=True):
        if isinstance(layer, MaskedLinear):
            assert torch.equal(layer.in_degrees, own.in_degrees)
            assert torch.equal(layer.out_degrees, own.out_degrees)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"made": "relu"}, r"context_net\.activation of the state is 'silu', expected 'relu'"),
        ({"head": "tanh"}, r"head\.activation of the state is 'silu', expected 'tanh'"),
        (
            {"noise": NoiseSchedule(2.0, 0.1, 3, form="staged")},
            "noise of the state is .*sigma_max=1.0.*, expected .*sigma_max=2.0",
        ),
    ],
)
def test_a_state_of_other_settings_is_refused(other, message):
    saved = io.BytesIO()
    torch.save(model(noise=NoiseSchedule(1.0, 0.1, 3, form="staged")).state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved)
    with pytest.raises(RuntimeError, match=message):
        model(**({"noise": NoiseSchedule(1.0, 0.1, 3, form="staged")} | other)).load_state_dict(state)


def test_constants_are_loaded_and_moved_as_buffers_are():
    layer = MaskedLinear([1, 2, 3], [2, 1])
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "in_degrees", "out_degrees"]
    assert list(dict(layer.named_buffers())) == []
    assert copy.deepcopy(layer).bfloat16().in_degrees.dtype is torch.int64
    assert copy.deepcopy(layer).to("meta").in_degrees.is_meta
    other = MaskedLinear([1, 1, 1], [1, 1])
    averaged = {name: 0.9999 * value + 0.0001 * value for name, value in state.items()}
    other.load_state_dict(averaged)
    assert other.in_degrees.tolist() == [1, 2, 3]
    with torch.device("meta"):
        empty = MaskedLinear([1, 1, 1], [1, 1])
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(torch.ones(1, 3)), layer(torch.ones(1, 3)))
    missing = {name: value for name, value in state.items() if name != "in_degrees"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "in_degrees"'):
        other.load_state_dict(missing)
    assert other.load_state_dict(missing, strict=False).missing_keys == ["in_degrees"]
    with pytest.raises(RuntimeError, match=r"in_degrees: it has shape \(2,\), expected \(3,\)"):
        other.load_state_dict(state | {"in_degrees": torch.tensor([1, 2])})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(state | {"degrees": torch.tensor([1, 2])})


def test_parameters_may_be_moved_without_the_constants():
    trained = model(noise=NoiseSchedule(1.0, 0.1, 3, form="staged"))
    moved = copy.deepcopy(trained)
    for module in moved.modules():  # as nn.DataParallel's replicas and devices of single tensors have it
        for own in (module._parameters, module._buffers):
            own |= {name: value.to("meta") for name, value in own.items() if value is not None}
    x = torch.empty(3, 4, device="meta")
    assert moved.context_net(x).is_meta
    assert moved.loss(x).is_meta
    assert all(degrees.is_meta for degrees in moved.context_net.network().degrees)
