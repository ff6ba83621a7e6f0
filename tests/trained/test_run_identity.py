"""A checkpoint is continued by the run that made it, and by no other."""

import argparse
import functools
import json
import types

import numpy as np
import pytest
import torch

from dynalyze import Initialization
from dynalyze.errors import InvalidInputError, SavedFileError
from dynalyze.models import DiagonalTransformer
from dynalyze.training import DiagonalHead, FullHead, Recording, train, train_many
from dynalyze.training.checkpoints import latest_checkpoint
from dynalyze.training.identity import describe

D = 3
X = np.random.default_rng(0).standard_normal((24, 4, D))
DATA = X, X * [0.5, -1.0, 0.2]


def start(n=2 * D, seed=1):
    return Initialization.gaussian(n, log10_alpha=-1.5, rng=seed)


def run(folder, model=None, *, steps=8, **change):
    options = {"init": start(), "lr": 0.01, "checkpoint": folder} | change
    return train(DiagonalHead(D) if model is None else model, DATA, steps=steps, **options)


def assert_same(one, other):
    for name in ("steps", "values", "losses"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def squares(output, target):
    return ((output - target) ** 2).flatten(1).sum(1)


def weighted(factor):
    return lambda output, target: factor * squares(output, target)


class Weighted:
    def __init__(self, factor):
        self._factor = factor

    def __call__(self, output, target):
        return self._factor * squares(output, target)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            lambda output, target: squares(output, target) / 1,
            lambda output, target: squares(output, target) / 2,
        ),
        (weighted(1.0), weighted(2.0)),
        (functools.partial(squares), functools.partial(weighted(1.0))),
        (Weighted(1.0), Weighted(2.0)),
        (weighted(torch.ones(())), weighted(torch.full((), 2.0))),
    ],
    ids=["code", "closure", "partial", "object", "tensor"],
)
def test_two_losses_of_one_name_are_two_runs(first, second, tmp_path):
    run(tmp_path, loss=first)
    with pytest.raises(InvalidInputError, match="is of another run: loss"):
        run(tmp_path, loss=second)
    assert run(tmp_path, steps=12, loss=first).success


def test_a_loss_made_anew_from_the_same_code_is_the_same_run(tmp_path):
    run(tmp_path, loss=weighted(0.5))
    longer = run(tmp_path, steps=12, loss=weighted(0.5))
    assert longer.steps[-1] == 12
    assert describe(weighted(0.5)) == json.loads(json.dumps(describe(weighted(0.5))))


def test_a_name_given_to_a_loss_counts_instead_of_its_code(tmp_path):
    first, same, other = (
        lambda output, target: squares(output, target) / 1,
        lambda output, target: squares(output, target) / 1.0,
        lambda output, target: squares(output, target) / 1,
    )
    first.identity = same.identity = "squares"
    other.identity = "other squares"
    run(tmp_path, loss=first)
    assert run(tmp_path, steps=12, loss=same).success
    with pytest.raises(InvalidInputError, match="loss was 'squares' and is now 'other squares'"):
        run(tmp_path, steps=12, loss=other)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pre_norm": True}, "model.pre_norm was False and is now True"),
        ({"output": "pooled"}, "model.output was 'tokens' and is now 'pooled'"),
    ],
)
def test_the_architecture_of_a_transformer_is_part_of_the_run(change, text, tmp_path):
    options = {"init": start(4 * D), "lr": 0.01, "steps": 3, "checkpoint": tmp_path}
    options["loss"] = lambda output, target: output.flatten(1).square().sum(1)
    train(DiagonalTransformer(D, n_layers=2, rng=0), DATA, **options)
    with pytest.raises(InvalidInputError, match=f"is of another run: {text}"):
        train(DiagonalTransformer(D, n_layers=2, rng=0, **change), DATA, **options)


SCALE, SETTINGS, OPTIONS = 1.0, {"scale": 1.0}, argparse.Namespace(scale=1.0, log="a")
HELPERS = types.ModuleType("helpers")
HELPERS.scale = 1.0


class Settings:
    scale = 1.0


def double(x):
    return 2 * x


class Referring(DiagonalHead):
    factor = 1.0

    @staticmethod
    def act(x):
        return x

    @property
    def half(self):
        return 0.5

    def forward(self, x):
        scale = SCALE * SETTINGS["scale"] * OPTIONS.scale * HELPERS.scale * Settings.scale
        return super().forward(self.act(double(x)) * self.factor * self.half) * scale


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setitem(globals(), "SCALE", 2.0),
        lambda patch: patch.setitem(SETTINGS, "scale", 2.0),
        lambda patch: patch.setattr(OPTIONS, "scale", 2.0),
        lambda patch: patch.setattr(HELPERS, "scale", 2.0),
        lambda patch: patch.setattr(Settings, "scale", 2.0),
        lambda patch: patch.setitem(globals(), "double", lambda x: 3 * x),
        lambda patch: patch.setattr(Referring, "factor", 2.0),
        lambda patch: patch.setattr(Referring, "act", staticmethod(lambda x: -x)),
        lambda patch: patch.setattr(Referring, "half", property(lambda self: 0.25)),
    ],
    ids=["global", "dict", "options", "module", "class", "function", "value", "static", "property"],
)
def test_what_the_methods_of_a_module_refer_to_is_part_of_the_run(change, tmp_path, monkeypatch):
    run(tmp_path, Referring(D))
    with monkeypatch.context() as patch:
        patch.setattr(OPTIONS, "log", "b")  # no method names it
        assert run(tmp_path, Referring(D), steps=9).success
        change(patch)
        with pytest.raises(InvalidInputError, match=r"is of another run: model\.class was"):
            run(tmp_path, Referring(D), steps=10)
    assert run(tmp_path, Referring(D), steps=10).success


@pytest.mark.parametrize("where", [HELPERS, Settings], ids=["module", "class"])
def test_what_a_loss_takes_from_a_module_or_a_class_is_part_of_the_run(where, monkeypatch):
    def loss(output, target):
        return where.scale * squares(output, target)

    before = describe(loss)
    monkeypatch.setattr(where, "scale", 2.0)
    assert describe(loss) != before


def test_a_module_with_another_hook_is_another_run(tmp_path):
    def hooked(factor):
        head = DiagonalHead(D)
        head.register_forward_hook(lambda module, inputs, output: factor * output)
        return head

    run(tmp_path, hooked(1.0))
    assert run(tmp_path, hooked(1.0), steps=9).success
    with pytest.raises(InvalidInputError, match=r"is of another run: model\._forward_hooks"):
        run(tmp_path, hooked(2.0))


def test_a_module_with_another_forward_is_another_run(tmp_path):
    class Head(DiagonalHead):
        def forward(self, x):
            return super().forward(x)

    one = Head

    class Head(DiagonalHead):
        def forward(self, x):
            return 2 * super().forward(x)

    run(tmp_path, one(D))
    with pytest.raises(InvalidInputError, match=r"another run: model.class was 'Head .*' and is"):
        run(tmp_path, Head(D))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam", "optimizer_options": {"betas": (0.8, 0.95)}},
        {"optimizer": "adam", "optimizer_options": {"betas": [np.float32(0.8), np.float64(0.95)]}},
        {
            "optimizer": "sgd",
            "batch_size": np.int32(7),
            "rng": np.int64(3),
            "optimizer_options": {"momentum": np.float32(0.5), "nesterov": np.bool_(True)},
        },
        {"lr": np.float32(0.01), "checkpoint_every": np.int64(4)},
        {"recording": Recording(change=np.float32(0.5), every=np.int64(3))},
    ],
    ids=["tuple", "numpy-betas", "numpy-sgd", "numpy-lr", "numpy-recording"],
)
def test_tuples_and_numpy_scalars_in_options_are_resumed(options, tmp_path):
    whole = run(None, steps=np.int64(12), **options)
    run(tmp_path, steps=np.int64(5), **options)
    again = run(tmp_path, steps=np.int64(12), **options)
    np.testing.assert_array_equal(again.theta[-1], whole.theta[-1])
    json.dumps(again.configuration)


def test_a_run_without_rng_keeps_its_seed_and_goes_on(tmp_path):
    options = {"optimizer": "sgd", "batch_size": 7, "recording": Recording(every=1)}
    run(tmp_path, steps=5, **options)
    again = run(tmp_path, steps=12, **options)
    (seed,) = again.configuration["seeds"]
    assert_same(again, run(None, steps=12, rng=seed, **options))
    assert_same(again, run(tmp_path, steps=12, rng=seed, **options))
    assert run(None, **options).configuration["seeds"] != [seed]
    with pytest.raises(InvalidInputError, match="another run: random order"):
        run(tmp_path, steps=12, rng=5, **options)


def test_a_seed_that_was_given_is_not_replaced_by_a_drawn_one(tmp_path):
    options = {"optimizer": "sgd", "batch_size": 7}
    run(tmp_path, rng=np.random.default_rng(5), **options)
    with pytest.raises(InvalidInputError, match="another run: random order"):
        run(tmp_path, **options)
    assert run(tmp_path, rng=np.random.default_rng(5), **options).success


def test_many_runs_without_rngs_go_on(tmp_path):
    inits = [start(seed=seed) for seed in range(3)]
    options = {"lr": 0.01, "optimizer": "adam", "batch_size": 5, "checkpoint": tmp_path}
    train_many(DiagonalHead(D), DATA, inits, steps=5, **options)
    again = train_many(DiagonalHead(D), DATA, inits, steps=9, **options)
    seeds = again[0].configuration["seeds"]
    options["checkpoint"] = None
    whole = train_many(DiagonalHead(D), DATA, inits, steps=9, rngs=seeds, **options)
    for one, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one.theta[-1], other.theta[-1])


def edited(value):
    """Every state that differs from `value` in one entry, one removed or one added."""
    if isinstance(value, dict):
        yield {**value, "added": 1}
        for key, part in value.items():
            yield {name: other for name, other in value.items() if name != key}
            for change in edited(part):
                yield {**value, key: change}
    elif isinstance(value, list):
        for index, part in enumerate(value[:3]):
            yield value[:index] + value[index + 1 :]
            for change in edited(part):
                yield [*value[:index], change, *value[index + 1 :]]
    else:
        yield "edited"
        if isinstance(value, int | float):
            yield value + 1


def test_an_edited_state_is_refused_whatever_was_edited(tmp_path):
    options = {"optimizer": "sgd", "batch_size": 7, "rng": 3}
    run(tmp_path, **options)
    file = latest_checkpoint(tmp_path) / "state.json"
    changes = list(edited(json.loads(file.read_text())))
    assert len(changes) > 100
    for change in changes:
        file.write_text(json.dumps(change))
        with pytest.raises(SavedFileError, match=r"state\.json cannot be read|in format"):
            run(tmp_path, steps=9, **options)


def test_a_checkpoint_of_train_vit_is_no_checkpoint_of_train(tmp_path):
    from dynalyze.training.vit import ViTOptions, ViTShape, digits, train_vit

    shape = ViTShape(
        image_size=8, n_channels=1, patch_size=4, n_layers=1, n_heads=1, width=4, mlp_width=4,
        head_width=2,
    )  # fmt: skip
    options = ViTOptions(batch_size=1000, n_epochs=1, warmup_epochs=0)
    folder = {"checkpoint": tmp_path, "device": "cpu"}
    train_vit(digits(), shape, options, max_seconds=0.0, **folder)
    with pytest.raises(InvalidInputError, match="kind was 'train_vit' and is now 'train'"):
        run(tmp_path)


@pytest.mark.parametrize("change", ["images", "labels", "test", "mean"])
def test_other_images_are_another_run_of_a_vision_transformer(change, tmp_path):
    from dataclasses import replace

    from dynalyze.training.vit import ArrayImages, ViTOptions, ViTShape, digits, train_vit

    data = digits()
    train, test = (
        ArrayImages(part.images[:40].clone(), part.labels[:40].copy())
        for part in (data.train, data.test)
    )
    data = replace(data, train=train, test=test)
    shape = ViTShape(
        image_size=8, n_channels=1, patch_size=4, n_layers=1, n_heads=1, width=4, mlp_width=4,
        head_width=2,
    )  # fmt: skip
    options = ViTOptions(batch_size=np.int64(16), n_epochs=1, warmup_epochs=np.float32(0))
    folder = {"checkpoint": tmp_path, "device": "cpu"}
    train_vit(data, shape, options, callback=lambda step, loss: step == 1, **folder)
    if change == "images":
        train.images[3, 0, 2, 2] += 1
    elif change == "labels":
        train.labels[:2] = train.labels[1], train.labels[0]
        assert train.labels[0] != train.labels[1]
    elif change == "test":
        test.images[3, 0, 2, 2] += 1
    else:
        data = replace(data, mean=data.mean + 1e-3)
    with pytest.raises(InvalidInputError, match=r"is of another run: (training|test|mean)"):
        train_vit(data, shape, options, **folder)


def test_a_full_head_is_no_diagonal_one(tmp_path):
    run(tmp_path)
    with pytest.raises(InvalidInputError, match=r"another run: model\.class was"):
        run(tmp_path, FullHead(D, 1))
