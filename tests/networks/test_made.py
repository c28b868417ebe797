import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fastcsm import functional
from fastcsm.nn import MADE, MaskedLinear

pytestmark = pytest.mark.filterwarnings("ignore:hidden_features has a layer of width")

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

    def test_a_layer_that_is_too_narrow_is_told(self):
        with pytest.warns(UserWarning, match="hidden_features has a layer of width 2 for 4 variables"):
            MADE(4, (5, 2), 3)

    def test_exports_with_a_batch_of_any_shape(self):
        made, size = MADE(4, (5,), 3), torch.export.Dim("size")
        exported = torch.export.export(made, (torch.randn(2, 3, 4),), dynamic_shapes=({1: size},))
        x = torch.randn(2, 7, 4)
        torch.testing.assert_close(exported.module()(x), made(x))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"features": 0}, "features must be at least 1, got 0"),
            ({"hidden_features": ()}, "hidden_features must be at least 1"),
            ({"hidden_features": 512}, "hidden_features must be a sequence of whole numbers, got 512"),
            ({"hidden_features": (4, 5.0)}, r"hidden_features must be a sequence .*, got \(4, 5.0\)"),
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
        with pytest.raises((ValueError, TypeError), match=message):
            MADE(**({"features": 3, "hidden_features": (4,), "context_features": 2} | arguments))


class TestIncremental:
    @given(NETWORKS)
    def test_contexts_are_those_of_the_full_pass(self, network):
        made = build(**network)
        x = torch.randn(3, made.features, dtype=torch.float64)
        expected = made(x)
        evaluator = made.units(3)
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
        evaluator = made.units(5)
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
        evaluator = made.units(2, dtype=torch.float64)
        x = torch.randn(2, 4)
        for k in range(3):
            evaluator.feed(x[:, made.order[k]])
        context = evaluator.context(3)
        assert context.dtype == torch.float64
        assert not context.requires_grad
        torch.testing.assert_close(context.float(), made.eval()(x)[:, 1])

    def test_bad_use(self):
        made = MADE(3, (4,), 2)
        evaluator = made.units(5)
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
        with pytest.raises(ValueError, match="degrees of a layer are not those of the layer before"):
            made.units(5)
        made.output.in_degrees[0] = 2
        with pytest.raises(ValueError, match="hidden units sorted by degree"):
            made.units(5)


def test_masked_linear_module():
    layer = MaskedLinear([1, 2, 3], [2, 1], activation="gelu", bias=False)
    assert layer.bias is None
    assert (layer.weight != 0).tolist() == [[True, True, False], [True, False, False]]
    x = torch.randn(2, 3)
    expected = functional.masked_linear(
        x, layer.weight, None, layer.in_degrees, layer.out_degrees, activation="gelu"
    )
    assert torch.equal(layer(x), expected)
