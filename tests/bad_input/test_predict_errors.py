"""What a user may get wrong with `predict_stages`: a clear error each, or a result that says so."""

import time

import numpy as np
import pytest
import sympy as sp
from objectives import Quadratic
from scipy.sparse import csr_array

from dynalyze import Initialization, predict_stages, simulate
from dynalyze.datasets import Dataset
from dynalyze.errors import ConstantFeatureWarning, InvalidInputError, StagesOverlapWarning
from dynalyze.models import AttentionHead, DiagonalLinear, SymbolicModel
from dynalyze.models.counted import CountedObjective

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 3)), RNG.standard_normal(20)
TOKENS = RNG.standard_normal((6, 4, 2))


def _simulate(model):
    return simulate(model, None, Initialization.gaussian(2, log10_alpha=-20, rng=0))


def _with(array, index, value):
    changed = np.array(array, dtype=float)
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((_with(X, (4, 1), np.nan), Y), r"X\[4, 1\] is nan.*not finite: remove or impute"),
        ((X, _with(Y, 7, np.inf)), r"y\[7\] is inf"),
        ((X, Y[:-1]), "X has 20 samples and y has 19: give one target per sample"),
        ((X[:, :2], Y), r"X has 2 columns for n_features=3: use DiagonalLinear\(2\)"),
        ((X, Y[:, None]), r"y has shape \(20, 1\): expected 1 axis"),
        ((X[:0], Y[:0]), "X is empty"),
        ((X.astype(str), Y), "X has dtype <U.*convert it to real numbers"),
        ((np.ma.masked_greater(X, 1.0), Y), "X has masked entries.*fill or drop them"),
        ((csr_array(X), Y), r"X is sparse: give X.toarray\(\)"),
        (X, "data must be a pair of arrays"),
        (None, r"data=None: DiagonalLinear needs a pair of arrays"),
    ],
)
def test_linear_data(data, message):
    with pytest.raises(InvalidInputError, match=message):
        predict_stages(DiagonalLinear(3), data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((_with(TOKENS, (1, 2, 0), np.nan), TOKENS), r"X\[1, 2, 0\] is nan"),
        ((TOKENS, TOKENS[:, :3]), "y has shape"),
        ((TOKENS[0], TOKENS[0]), r"X has shape \(4, 2\): expected 3 axes"),
        ((TOKENS[..., :1], TOKENS[..., :1]), "d_model"),
    ],
)
def test_head_data(data, message):
    with pytest.raises(InvalidInputError, match=message):
        predict_stages(AttentionHead(2), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge' is not known: choose one of 'squared', 'mse'"),
        ({"sample_weight": -np.ones(20)}, r"sample_weight\[0\] is -1.0"),
        ({"sample_weight": np.zeros(20)}, "sample_weight is 0 for every sample"),
        ({"sample_weight": np.ones(3)}, "sample_weight has 3 entries for 20 samples"),
        ({"max_stages": 0}, "max_stages=0"),
        ({"max_seconds": -1.0}, "max_seconds=-1.0 must be positive"),
        ({"field_rtol": 2.0}, "field_rtol=2.0 must lie between 0 and 1"),
        ({"tie_rtol": 0.0}, "tie_rtol=0.0 must lie between 0 and 1"),
        (
            {"init": Initialization([1.0], [0.5], log10_alpha=-8)},
            "init has 1 products and the model 3",
        ),
        ({"init": 1e-8}, "init=1e-08 must be an Initialization: give Initialization.gaussian"),
    ],
)
def test_options(options, message):
    with pytest.raises(InvalidInputError, match=message):
        predict_stages(DiagonalLinear(3), (X, Y), **options)


@pytest.mark.parametrize("value", [0, -3, 2.5, "3", True])
def test_number_of_features(value):
    with pytest.raises(InvalidInputError, match=f"n_features={value!r}"):
        DiagonalLinear(value)


def test_feature_names_of_another_number():
    with pytest.raises(InvalidInputError, match="feature_names has 1 entries for n_features=3"):
        DiagonalLinear(3, feature_names=("age",))


def test_something_that_is_no_model():
    with pytest.raises(InvalidInputError, match=r"is neither a Model .* nor an Objective"):
        predict_stages(object(), (X, Y))


def test_arguments_in_the_wrong_order_do_not_fill_the_screen():
    with pytest.raises(InvalidInputError, match=r"model=<tuple> is neither a Model") as caught:
        predict_stages((X, Y), DiagonalLinear(3))
    assert len(str(caught.value)) < 250


def test_a_class_in_place_of_a_model():
    with pytest.raises(InvalidInputError, match="DiagonalLinear is a class: give an instance"):
        predict_stages(DiagonalLinear, (X, Y))


def test_a_data_set_in_place_of_its_arrays():
    data = Dataset(X, Y)
    with pytest.raises(InvalidInputError, match=r"received Dataset .*: give \(data.X, data.y\)"):
        predict_stages(DiagonalLinear(3), data)


def test_targets_in_a_column():
    with pytest.raises(InvalidInputError, match=r"expected 1 axis, .*y\[..., 0\] has that shape"):
        predict_stages(DiagonalLinear(3), (X, Y[:, None]))


def test_tensors():
    torch = pytest.importorskip("torch")
    prediction = predict_stages(DiagonalLinear(3), (torch.tensor(X), torch.tensor(Y)))
    np.testing.assert_array_equal(prediction.theta, predict_stages(DiagonalLinear(3), (X, Y)).theta)
    with pytest.raises(InvalidInputError, match=r"X, a Tensor, is not convertible .*detach"):
        predict_stages(DiagonalLinear(3), (torch.tensor(X, requires_grad=True), Y))
    with pytest.raises(InvalidInputError, match=r"X, a Tensor, is not convertible .*BFloat16"):
        predict_stages(DiagonalLinear(3), (torch.tensor(X, dtype=torch.bfloat16), Y))


def test_learning_rate_without_steps():
    init = Initialization.gaussian(3, log10_alpha=-300, rng=0)
    prediction = predict_stages(DiagonalLinear(3), (X, Y), init=init)
    with pytest.raises(InvalidInputError, match=r"lr=0.1 .*use unit='steps'"):
        prediction.jump_times(lr=0.1)


def test_objective_with_data_given_twice():
    objective = DiagonalLinear(3).bind((X, Y))
    with pytest.raises(InvalidInputError, match="brings its data, loss and weights: leave out"):
        predict_stages(objective, (X, Y))
    assert predict_stages(objective).n_stages == 3


def test_integer_targets_are_converted():
    labels = np.arange(20) % 3
    integer = predict_stages(DiagonalLinear(3), (X, labels))
    floating = predict_stages(DiagonalLinear(3), (X, labels.astype(float)))
    np.testing.assert_array_equal(integer.theta, floating.theta)


def test_zero_targets_give_no_stage_and_say_why():
    prediction = predict_stages(DiagonalLinear(3), (X, np.zeros(20)))
    assert prediction.status == "converged"
    assert prediction.n_stages == 0
    assert "nothing is learned within a time of log(1/α); are all targets" in prediction.message
    assert prediction.losses.tolist() == [0.0]
    assert "nothing is learned within" in prediction.summary()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features_are_named(value):
    constant = _with(X, (slice(None), 1), value)
    with pytest.warns(ConstantFeatureWarning, match=f"feature 1 of X is {value:g} throughout"):
        prediction = predict_stages(DiagonalLinear(3), (constant, Y))
    assert (1 in prediction.coordinates) == (value != 0)


def test_duplicated_features_tie_and_the_stages_before_are_kept():
    weak_twins = np.column_stack([X, 0.1 * X[:, 2], 0.1 * X[:, 2]])[:, [0, 1, 3, 4]]
    prediction = predict_stages(DiagonalLinear(4), (weak_twins, Y))
    assert prediction.status == "tie"
    assert prediction.n_stages == 2
    assert sorted(prediction.coordinates.tolist()) == [0, 1]
    assert "tie at stage 3: theta[2] and theta[3] activate within" in prediction.message
    assert "duplicates?" in prediction.message
    assert prediction.theta.shape == (3, 4)


def test_budgets_keep_what_was_found():
    whole = predict_stages(DiagonalLinear(3), (X, Y))
    part = predict_stages(DiagonalLinear(3), (X, Y), max_stages=2)
    assert part.status == "max_stages"
    assert "max_stages=2; raise it" in part.message
    np.testing.assert_array_equal(part.times, whole.times[:2])
    out_of_time = predict_stages(DiagonalLinear(3), (X, Y), max_seconds=1e-9)
    assert (out_of_time.status, out_of_time.n_stages) == ("max_seconds", 0)


class _Runaway:
    """L(θ) = Σ log(1 + e^{−θ_i}): no finite minimum, like separable cross-entropy."""

    n_products, product_names = 1, ("w",)

    def value(self, theta):
        return float(np.logaddexp(0, -theta).sum())

    def field(self, theta):
        return 1 / (1 + np.exp(theta))

    def value_and_field(self, theta):
        return self.value(theta), self.field(theta)

    def hessian_columns(self, theta, indices):
        s = self.field(theta)
        return np.diag(s * (1 - s))[:, indices]


def test_a_loss_without_a_minimum_has_no_limit_point():
    prediction = predict_stages(_Runaway())
    assert prediction.status == "no_limit"
    assert "no limit point at stage 1, when w activates" in prediction.message
    assert "the orbit was followed for" in prediction.message
    assert "do not shrink" in prediction.message
    assert prediction.times.shape == (0,)
    assert prediction.theta.tolist() == [[0.0]]


class _Nan(_Runaway):
    def field(self, theta):
        return np.where(theta < 0.1, 1.0, np.nan)


def test_a_field_that_is_not_a_number_ends_the_stage_with_the_reason():
    prediction = predict_stages(_Nan())
    assert prediction.status == "no_limit"
    assert "the field g is nan at product w" in prediction.message


def test_initialization_too_large_to_separate_the_stages():
    init = Initialization.gaussian(3, log10_alpha=-0.5, rng=0)
    with pytest.warns(StagesOverlapWarning, match="does not separate .* see log10_alpha_separated"):
        predict_stages(DiagonalLinear(3), (X, Y), init=init)


def test_jump_times_need_an_initialization_and_known_units():
    with pytest.raises(InvalidInputError, match=r"call predict_stages\(\.\.\., init="):
        predict_stages(DiagonalLinear(3), (X, Y)).jump_times()
    init = Initialization.gaussian(3, log10_alpha=-1000, rng=0)
    prediction = predict_stages(DiagonalLinear(3), (X, Y), init=init)
    with pytest.raises(InvalidInputError, match="unit='epochs' is not known: choose one of 'flow'"):
        prediction.jump_times(unit="epochs")
    with pytest.raises(InvalidInputError, match="lr=None must be a positive number"):
        prediction.jump_times(unit="steps")
    with pytest.raises(InvalidInputError, match="threshold=0 must be positive"):
        prediction.jump_times(0)


class Interrupted(CountedObjective):
    """An objective of which one evaluation of the field raises what Ctrl-C does."""

    def __init__(self, at_call):
        super().__init__(DiagonalLinear(3).bind((X, Y)))
        self.at_call = at_call

    def field(self, theta):
        self._interrupt()
        return super().field(theta)

    def value_and_field(self, theta):
        self._interrupt()
        return super().value_and_field(theta)

    def _interrupt(self):
        if self.nfev == self.at_call:
            raise KeyboardInterrupt


INIT = Initialization.gaussian(3, log10_alpha=-300, rng=0)


def test_interrupted_predictions_keep_the_stages_found_and_their_jump_times():
    whole = predict_stages(DiagonalLinear(3), (X, Y), init=INIT)
    kept = set()
    for at_call in range(3, whole.stats.nfev, 3):
        prediction = predict_stages(Interrupted(at_call), init=INIT)
        if prediction.status == "converged":  # the call is never reached
            continue
        assert prediction.status == "interrupted"
        assert "interrupted" in prediction.message
        k = prediction.n_stages
        kept.add(k)
        np.testing.assert_array_equal(prediction.times, whole.times[:k])
        np.testing.assert_array_equal(prediction.theta, whole.theta[: k + 1])
        np.testing.assert_array_equal(prediction.b, whole.b[: k + 1])
        # The visible size, at which products compete, is that of the stages known.
        np.testing.assert_allclose(prediction.jump_times(), whole.jump_times()[:k], rtol=1e-12)
    assert kept >= {0, 1, 2}


def test_jump_times_of_the_stages_found_survive_the_end_of_the_time():
    whole = predict_stages(DiagonalLinear(3), (X, Y), init=INIT)
    prediction = predict_stages(
        DiagonalLinear(3), (X, Y), init=INIT, max_seconds=0.2, callback=lambda _: time.sleep(0.25)
    )
    assert prediction.status == "max_seconds"
    assert 0 < prediction.n_stages < whole.n_stages
    expected = whole.jump_times()[: prediction.n_stages]
    np.testing.assert_allclose(prediction.jump_times(), expected, rtol=1e-12)
    assert prediction.separated.all()


class _Broken(Quadratic):
    """A loss of one's own with one mistake in it."""

    def __init__(self, mistake):
        super().__init__([1.0, -0.5])
        self.mistake = mistake

    @property
    def product_names(self):
        return ("w",) if self.mistake == "names" else super().product_names

    def value_and_field(self, theta):
        value, field = super().value_and_field(theta)
        return value, {"list": list(field), "short": field[:1]}.get(self.mistake, field)

    def hessian_columns(self, theta, indices):
        columns = super().hessian_columns(theta, indices)
        return self.hessian if self.mistake == "hessian" else columns


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("list", r"_Broken.field\(theta\) returns a list .*return a NumPy array of shape \(2,\)"),
        ("short", r"returns shape \(1,\) for n_products=2: return a NumPy array of shape \(2,\)"),
        ("hessian", r"hessian_columns\(theta, \[0\]\) returns shape \(2, 2\).*of shape \(2, 1\)"),
        ("names", "product_names has 1 entries for n_products=2: give one name per product"),
    ],
)
@pytest.mark.parametrize("run", [predict_stages, _simulate])
def test_own_objective(run, mistake, message):
    with pytest.raises(InvalidInputError, match=message):
        run(_Broken(mistake))


def test_loss_that_is_not_a_number_does_not_seem_at_rest():
    class NotANumber(Quadratic):
        def value_and_field(self, theta):
            return np.nan, np.full(2, np.nan)

    with pytest.raises(InvalidInputError, match=r"NotANumber has the loss nan .* must be finite"):
        predict_stages(NotANumber([1.0, -0.5]))


def test_products_that_multiply_one_another_are_named_as_a_reason():
    a, b, x = sp.symbols("a b x")
    model = SymbolicModel(a * b * x, inputs=[x], products=[a, b])
    prediction = predict_stages(model, (X[:, :1], Y))
    assert prediction.n_stages == 0
    assert "does every product enter squared or multiplied by others" in prediction.message


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_a_loss_beyond_the_scales_of_floats_is_named(scale):
    message = r"at θ = 0, beyond 1e-60 … 1e\+60: divide the loss by|the loss inf .* rescale data"
    init = Initialization.gaussian(3, log10_alpha=-8, rng=0)
    for X_scaled, y_scaled in ((scale * X, Y), (X, scale * Y)):
        with pytest.raises(InvalidInputError, match=message):
            predict_stages(DiagonalLinear(3), (X_scaled, y_scaled))
        with pytest.raises(InvalidInputError, match=message):
            simulate(DiagonalLinear(3), (X_scaled, y_scaled), init=init)


@pytest.mark.parametrize("scale", [1e50, 1e-50])
def test_the_scale_of_a_loss_changes_the_unit_of_time_alone(scale):
    init = Initialization.gaussian(3, log10_alpha=-8, rng=0)
    expected = predict_stages(DiagonalLinear(3), (X, Y), init=init)
    root = np.sqrt(scale)
    found = predict_stages(DiagonalLinear(3), (root * X, root * Y), init=init)
    np.testing.assert_array_equal(found.coordinates, expected.coordinates)
    np.testing.assert_allclose(found.theta, expected.theta, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.times * scale, expected.times, rtol=1e-9)
    until = 3 * expected.times[0] * init.log_inverse_alpha
    flow = simulate(DiagonalLinear(3), (X, Y), init=init, until=until)
    scaled = simulate(DiagonalLinear(3), (root * X, root * Y), init=init, until=until / scale)
    np.testing.assert_allclose(scaled.z[-1], flow.z[-1], rtol=0, atol=1e-5)


def test_features_in_tiny_units_do_not_look_as_if_the_loss_had_no_minimum():
    init = Initialization.gaussian(3, log10_alpha=-8, rng=0)
    small = simulate(DiagonalLinear(3), (1e-20 * X, Y), init=init)
    expected = predict_stages(DiagonalLinear(3), (X, Y)).theta[-1]
    assert small.status == "stationary"
    np.testing.assert_allclose(1e-20 * small.theta[-1], expected, rtol=1e-6, atol=1e-6)


def test_bare_module():
    torch = pytest.importorskip("torch")
    with pytest.raises(
        InvalidInputError, match=r"<Linear> is a PyTorch module.*TorchModel\(module"
    ):
        predict_stages(torch.nn.Linear(3, 1), (X, Y))


@pytest.mark.parametrize("init", [None, INIT])
def test_a_callback_sees_each_stage_and_may_stop(init):
    whole = predict_stages(DiagonalLinear(3), (X, Y), init=init)
    seen = []

    def callback(stage):
        seen.append(stage.activation.coordinate)
        return len(seen) == 2

    part = predict_stages(DiagonalLinear(3), (X, Y), init=init, callback=callback)
    assert (part.status, part.success) == ("callback", False)
    assert part.message == "stopped by the callback after stage 2"
    assert part.coordinates.tolist() == seen == whole.coordinates[:2].tolist()
    if init is not None:
        np.testing.assert_allclose(part.jump_times(), whole.jump_times()[:2], rtol=1e-12)
