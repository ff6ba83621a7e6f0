"""Vision transformers that train: resumed, divided over processes, stopped, saved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dynalyze import spectra  # noqa: E402
from dynalyze.errors import InvalidInputError, SavedFileError  # noqa: E402
from dynalyze.training.checkpoints import latest_checkpoint  # noqa: E402
from dynalyze.training.vit import (  # noqa: E402
    ArrayImages,
    VisionData,
    VisionTransformer,
    ViTOptions,
    ViTRun,
    ViTShape,
    digits,
    train_vit,
)

SHAPE = ViTShape(
    image_size=8, n_channels=1, patch_size=4, n_layers=2, n_heads=2, width=16, mlp_width=16,
    head_width=6,
)  # fmt: skip


def _data() -> VisionData:
    """A tenth of the digits, with augmentation."""
    whole = digits()
    parts = [
        ArrayImages(part.images[:140], part.labels[:140], padding=1)  # type: ignore[attr-defined]
        for part in (whole.train, whole.test)
    ]
    return VisionData("digits", *parts, 10, whole.mean, whole.deviation, augment=True)


OPTIONS = ViTOptions(lr=3e-3, batch_size=32, n_epochs=4, warmup_epochs=1)


def _train(folder: Path | None = None, **more: object) -> ViTRun:
    arguments: dict[str, object] = {"track_every": 3, "checkpoint_every": 4, "seed": 7, **more}
    return train_vit(_data(), SHAPE, OPTIONS, checkpoint=folder, **arguments)  # type: ignore[arg-type]


def _assert_same(first: ViTRun, second: ViTRun) -> None:
    for name, value in vars(first.history).items():
        np.testing.assert_array_equal(value, getattr(second.history, name), err_msg=name)
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(weight, second.weights[name], err_msg=name)
    for name in ("train_losses", "test_losses", "test_accuracies", "n_steps", "status"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


@pytest.fixture(scope="module")
def unbroken() -> ViTRun:
    return _train()


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_a_random_step_and_resumed(tmp_path: Path, unbroken: ViTRun, seed: int) -> None:
    fatal = int(np.random.default_rng(seed).integers(1, unbroken.n_steps))

    def kill(step: int, loss: float) -> None:
        if step == fatal:
            raise _KilledError

    with pytest.raises(_KilledError):
        _train(tmp_path, callback=kill)
    _assert_same(_train(tmp_path), unbroken)


SCRIPT = """
import sys
import test_vit_training as t
t._train(t.Path(sys.argv[1]), checkpoint_every=1, callback=lambda step, loss: t.time.sleep(0.05))
"""


def test_killed_by_the_system_and_resumed(tmp_path: Path, unbroken: ViTRun) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=os.environ | {"PYTHONPATH": paths}
    )
    try:
        until = time.monotonic() + 120
        while latest_checkpoint(tmp_path) is None:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    place = latest_checkpoint(tmp_path)
    assert place is not None
    assert place.name < f"step-{unbroken.n_steps:09d}"
    _assert_same(_train(tmp_path, checkpoint_every=1), unbroken)


@pytest.mark.parametrize(("precision", "products"), [("tf32", "tf32"), ("float32", "ieee")])
def test_precision_sets_the_products_of_float32_while_training(
    precision: str, products: str
) -> None:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    seen = set()

    def look(step: int, loss: float) -> bool:
        seen.add((matmul.fp32_precision, convolution.fp32_precision))
        return step == 3

    options = ViTOptions(n_epochs=1, batch_size=32, warmup_epochs=0, precision=precision)
    train_vit(_data(), SHAPE, options, track_every=1, callback=look)
    assert seen == {(products, products)}
    assert (matmul.fp32_precision, convolution.fp32_precision) == before


def test_stopped_by_the_callback_or_the_clock(tmp_path: Path, unbroken: ViTRun) -> None:
    first = _train(tmp_path, callback=lambda step, loss: step == 5)
    assert (first.status, first.n_steps) == ("callback", 5)
    assert first.history.steps.tolist() == [0, 3, 5]
    second = _train(tmp_path, max_seconds=0.0)
    assert (second.status, second.n_steps) == ("max_seconds", 6)
    assert "raise max_seconds" in second.message
    _assert_same(_train(tmp_path), unbroken)


def test_checkpoints_of_another_run_and_damaged_ones(tmp_path: Path) -> None:
    _train(tmp_path, callback=lambda step, loss: step == 4)
    with pytest.raises(InvalidInputError, match=r"another run: scale was 1.0 and is now 0.5"):
        _train(tmp_path, scale=0.5)
    place = latest_checkpoint(tmp_path)
    assert place is not None
    tensors = place / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    with pytest.raises(SavedFileError, match=r"truncated or damaged"):
        _train(tmp_path)


def test_divergence_is_a_status_not_an_accident() -> None:
    options = ViTOptions(optimizer="sgd", lr=1e30, batch_size=32, n_epochs=1, warmup_epochs=0)
    run = train_vit(_data(), SHAPE, options, track_every=1)
    assert run.status == "diverged"
    assert "lower lr" in run.message
    assert run.history.steps.tolist() == [0, *range(1, run.n_steps)]


def test_saved_run_comes_back(tmp_path: Path, unbroken: ViTRun) -> None:
    unbroken.save(tmp_path / "run.npz")
    loaded = ViTRun.load(tmp_path / "run.npz")
    _assert_same(unbroken, loaded)
    images = torch.randn(3, 1, 8, 8)
    own = VisionTransformer(SHAPE)
    own.load_state_dict({n: torch.from_numpy(w) for n, w in unbroken.weights.items()})
    torch.testing.assert_close(loaded.model()(images), own(images), rtol=0, atol=0)
    assert "status: finished (all 20 steps made)" in loaded.summary()
    assert loaded.status is unbroken.status


def test_checkpoints_can_be_tracked_afterwards(tmp_path: Path, unbroken: ViTRun) -> None:
    _train(tmp_path, keep_checkpoints=10, checkpoint_every=6)
    places = sorted(tmp_path.glob("step-*"))
    # The number of heads stands in the checkpoint's own description.
    found = spectra.track_checkpoints(
        places, reference=tmp_path / "initial.safetensors", n_values=10
    )
    assert found.steps.tolist() == [6, 12, 18, 20]
    for step in (6, 12, 18):
        np.testing.assert_allclose(
            found.singular_values[found.index(step)],
            unbroken.history.singular_values[unbroken.history.index(step)],
            rtol=0,
            atol=1e-6,
        )


DDP = """
import sys
import numpy as np
import test_vit_training as t
from dynalyze.training import process_group
from dynalyze.training.vit import ViTOptions, train_vit
with process_group(device="cpu") as process:
    options = ViTOptions(
        optimizer="sgd", lr=0.1, momentum=0.5, batch_size=33, n_epochs=2, warmup_epochs=1
    )
    arguments = (t._data(), t.SHAPE, options)
    settings = {"track_every": 4, "device": "cpu"}
    if process.size > 1:  # stopped in the second epoch, and continued
        settings["checkpoint"] = sys.argv[1]
        stopped = train_vit(*arguments, **settings, callback=lambda step, loss: step == 7)
        assert (stopped.status, stopped.n_steps) == ("callback", 7)
    run = train_vit(*arguments, **settings)
    run.save(f"{sys.argv[1]}.{process.size}.{process.rank}.npz")
"""


@pytest.mark.parametrize("n_processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_equal_one(tmp_path: Path, n_processes: int) -> None:
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(DDP)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    for launcher in (
        [],
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"],
    ):
        done = subprocess.run(
            [sys.executable, *launcher, script, out],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    alone = ViTRun.load(f"{out}.1.0.npz")
    both = [ViTRun.load(f"{out}.{n_processes}.{rank}.npz") for rank in range(n_processes)]
    for other in both[1:]:
        _assert_same(both[0], other)
    assert both[0].configuration["ranks"] == n_processes
    for name, weight in alone.weights.items():
        np.testing.assert_allclose(both[0].weights[name], weight, rtol=0, atol=2e-6, err_msg=name)
    np.testing.assert_allclose(both[0].train_losses, alone.train_losses, rtol=1e-6)
    np.testing.assert_allclose(
        both[0].history.singular_values, alone.history.singular_values, rtol=0, atol=2e-6
    )


def test_training_learns_and_moves_by_low_rank() -> None:
    options = ViTOptions(lr=3e-3, batch_size=128, n_epochs=8, warmup_epochs=1)
    run = train_vit(options=options, track_every=12)
    assert run.test_accuracies[-1] > 0.8
    moved = run.history.frobenius_norm[-1] > 0
    assert moved.all()
    assert (run.history.stable_rank[-1] < run.history.initial_stable_rank).all()
