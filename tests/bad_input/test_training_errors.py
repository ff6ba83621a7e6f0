"""What a training run refuses or warns of, by the text the user reads."""

import inspect

import numpy as np
import pytest
import torch

from dynalyze import Initialization
from dynalyze.errors import (
    DynalyzeError,
    InvalidInputError,
    LearningRateWarning,
    NonSmoothWarning,
)
from dynalyze.models import AttentionHead, TorchModel
from dynalyze.training import DiagonalHead, FullHead, Recording, train, train_many

D = 3
X = np.random.default_rng(0).standard_normal((12, 4, D))
DATA = X, AttentionHead(D).predict([0.5, 0.0, -0.7, 1.0, -0.6, 0.8], X)


def start(log10_alpha=-2.0, n=2 * D, seed=1):
    return Initialization.gaussian(n, log10_alpha=log10_alpha, rng=seed)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": None}, "steps=None and until=None: give exactly one"),
        ({"until": 3.0}, "steps=5 and until=3.0: give exactly one"),
        ({"steps": 0}, "steps=0: must be a positive integer"),
        ({"steps": None, "until": -1.0}, "until=-1.0: must be a positive flow time"),
        ({"lr": 0.0}, "lr=0.0 must be a positive number"),
        ({"lr": np.nan}, "lr=nan must be a positive number"),
        ({"optimizer": "lbfgs"}, "optimizer='lbfgs' is not known: choose one of 'gd', 'sgd'"),
        ({"optimizer": "sgd"}, "optimizer='sgd' needs batch_size"),
        ({"batch_size": 4}, "batch_size=4 with optimizer='gd', which uses all samples"),
        ({"optimizer": "sgd", "batch_size": 0}, "batch_size=0: must be a positive integer"),
        ({"optimizer_options": {"betas": 1}}, r"torch.optim.SGD does not take them"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        (
            {"init": 1e-4},
            r"init=0.0001 must be an Initialization: give .*gaussian\(6,",
        ),
        ({"init": start(n=4)}, "init has 4 entries in u0 and in v0, and the model 6"),
        ({"init": start(-200)}, r"log10_alpha=-200 is below -150, .* use dynalyze.simulate"),
        ({"loss": "l1"}, "loss='l1' is not known"),
        ({"lr": "0.1"}, "lr='0.1' must be a positive number"),
        ({"recording": 5}, r"recording=5 must be a Recording, such as Recording\(every=10\)"),
        ({"callback": "stop"}, "callback='stop' must be a function of the step"),
        ({"checkpoint": 5}, "checkpoint=5 must be the path of a folder"),
        ({"checkpoint": ""}, "checkpoint='' must be the path of a folder"),
        ({"optimizer_options": [("momentum", 0.5)]}, "optimizer_options=.* must be a mapping"),
        ({"optimizer_options": {"differentiable": True}}, "torch.optim.SGD does not take them"),
        (
            {"optimizer": "adam", "optimizer_options": {"betas": (0.9, 0.99, 0.9)}},
            "torch.optim.Adam does not take them",
        ),
        ({"optimizer": "sgd", "batch_size": 2, "rng": "a"}, "rng='a' must be a numpy.random.Gen"),
        ({"optimizer": "sgd", "batch_size": 2, "rng": -1}, "rng=-1 must be .* non-negative int"),
    ],
)
def test_options(change, text):
    options = {"init": start(), "lr": 0.1, "steps": 5} | change
    with pytest.raises(InvalidInputError, match=text):
        train(DiagonalHead(D), DATA, **options)


def test_the_device_of_a_torch_model_is_checked_too():
    model = TorchModel(DiagonalHead(D), DiagonalHead(D).products)
    with pytest.raises(InvalidInputError, match="device='nowhere' is not a torch device"):
        train(model, DATA, init=start(), lr=0.1, steps=1, device="nowhere")


def test_full_heads_have_a_smallest_scale():
    head = FullHead(D)
    init = start(-20, n=head.n_weights)
    acting_on_entries = {"optimizer": "adam"}, {"optimizer_options": {"momentum": 0.9}}
    for options in acting_on_entries:
        with pytest.raises(InvalidInputError, match="log10_alpha=-20 is below -12, where rounding"):
            train(head, DATA, init=init, lr=0.1, steps=1, **options)
    with pytest.raises(InvalidInputError, match="log10_alpha=-160 is below -150"):
        train(head, DATA, init=start(-160, n=head.n_weights), lr=0.1, steps=1)


@pytest.mark.parametrize("model", [3, torch.nn.Linear(3, 3)])
def test_models_without_products(model):
    with pytest.raises(InvalidInputError, match="whose products are not known: wrap it in Torch"):
        train(model, DATA, init=start(), lr=0.1, steps=1)


def test_a_function_has_no_weights_to_train():
    model = TorchModel.from_function(lambda x, theta: x * theta[:D], 2 * D)
    with pytest.raises(InvalidInputError, match="which has no weights to train: give a module"):
        train(model, DATA, init=start(), lr=0.1, steps=1)


def test_many_runs_need_one_init_and_one_rng_each():
    with pytest.raises(InvalidInputError, match="inits is empty"):
        train_many(DiagonalHead(D), DATA, [], lr=0.1, steps=1)
    with pytest.raises(InvalidInputError, match="rngs has 1 entries and inits 2"):
        train_many(DiagonalHead(D), DATA, [start(), start()], rngs=[0], lr=0.1, steps=1)


@pytest.mark.parametrize("options", [{"change": 0}, {"every": 0}, {"check_every": -1}])
def test_recordings(options):
    (name,) = options
    with pytest.raises(InvalidInputError, match=f"{name}="):
        Recording(**options)


def test_divergence_is_named_and_leaves_the_records_before_it():
    with pytest.warns(LearningRateWarning, match=r"lr=40 is too large; try 10"):
        run = train(DiagonalHead(D), DATA, init=start(-1), lr=40.0, steps=200)
    assert run.status == "diverged"
    assert not run.success
    assert np.isfinite(run.theta).all()
    assert run.steps[-1] < 200


def test_a_run_that_diverges_leaves_the_others_alone():
    class Steep(DiagonalHead):
        def forward(self, x):
            return super().forward(x) + (self.w_v * self.w_o) ** 3

    # Only the large initial weights are beyond what the learning rate can hold.
    inits = [start(-2), Initialization(100 * np.ones(6), 90 * np.ones(6), log10_alpha=-1.5)]
    options = {"lr": 0.02, "steps": 100}
    with pytest.warns(LearningRateWarning, match="exceeded 100 times its start"):
        good, bad = train_many(Steep(D), DATA, inits, **options)
    assert (good.status, bad.status) == ("finished", "diverged")
    alone = train(Steep(D), DATA, init=inits[0], **options)
    np.testing.assert_allclose(good.theta, alone.theta, rtol=1e-10, atol=1e-14)


def test_the_edge_of_stability_is_named():
    with pytest.warns(
        LearningRateWarning, match=r"the loss rose at \d+ of 300 steps: lr=0.4 is at"
    ):
        run = train(DiagonalHead(D), DATA, init=start(-1), lr=0.4, steps=300)
    assert run.status == "finished"
    assert run.loss_rises > 6


def test_a_stable_run_at_the_minimum_is_not_taken_for_unstable():
    run = train(DiagonalHead(D), DATA, init=start(-1), lr=0.2, steps=1500)
    assert run.losses[-1] < 1e-6 * run.losses[0]
    assert run.loss_rises == 0


def test_a_loss_that_is_not_finite_at_the_start():
    huge = Initialization(1e200 * np.ones(6), 9e199 * np.ones(6), log10_alpha=-1)
    with pytest.raises(
        InvalidInputError, match="loss is not finite at the initial weights of run 0"
    ):
        train(DiagonalHead(D), DATA, init=huge, lr=0.1, steps=3)


def test_reading_outside_the_run():
    run = train(DiagonalHead(D), DATA, init=start(), lr=0.1, steps=10)
    with pytest.raises(InvalidInputError, match=r"t=2.0 is outside the flow times 0.0 … "):
        run.theta_at([0.5, 2.0])
    with pytest.raises(InvalidInputError, match=r"threshold=-1\.0 must be positive and finite"):
        run.crossings(-1)


def test_limits_of_time_and_callbacks():
    options = {"init": start(), "lr": 0.1, "steps": 10**6}
    late = train(DiagonalHead(D), DATA, max_seconds=0.05, **options)
    assert late.status == "max_seconds"
    assert "raise max_seconds" in late.message
    told = train(DiagonalHead(D), DATA, callback=lambda step, losses: step >= 7, **options)
    assert told.status == "callback"
    assert told.steps[-1] == 7


def test_out_of_memory_on_one_sample():
    class Hopeless(DiagonalHead):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return super().forward(x)

    with pytest.raises(DynalyzeError, match="ran out of memory on one sample"):
        train(Hopeless(D), DATA, init=start(), lr=0.1, steps=3)


def test_modules_that_cannot_be_batched_are_trained_one_by_one():
    class Branching(DiagonalHead):
        def forward(self, x):
            out = super().forward(x)
            return out if (self.w_v * self.w_o).sum() > 0 else 2 * out

    model = TorchModel(Branching(D), [("w_k", "w_q"), ("w_v", "w_o")])
    options = {"lr": 0.1, "steps": 2}
    decides = pytest.warns(NonSmoothWarning, match="decision by numbers that depend on θ")
    one_by_one = r"by torch.func.vmap .*one by one with train"
    with decides, pytest.raises(InvalidInputError, match=one_by_one):
        train_many(model, DATA, [start(), start()], **options)
    with decides:
        assert train(model, DATA, init=start(), **options).success


def test_warnings_point_at_the_call():
    with pytest.warns(LearningRateWarning) as caught:
        train(DiagonalHead(D), DATA, init=start(-1), lr=40.0, steps=50)
    assert caught[0].filename == __file__


def test_keywords_that_are_not_known_or_lack_name_the_function():
    with pytest.raises(TypeError, match=r"^train\(\) got an unexpected keyword argument 'rate'$"):
        train(DiagonalHead(D), DATA, lr=0.1, rate=0.1)
    with pytest.raises(TypeError, match=r"^train_many\(\) missing a required argument: 'lr'$"):
        train_many(DiagonalHead(D), DATA, [start()], steps=2)
    assert list(inspect.signature(train).parameters)[:3] == ["model", "data", "lr"]
