"""``dynalyze train vit`` as a user types it."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dynalyze.cli import main  # noqa: E402
from dynalyze.training.vit import ViTOptions, ViTRun, ViTShape, train_vit  # noqa: E402

SMALL = [
    "--layers", "1", "--heads", "2", "--width", "16", "--mlp-width", "16", "--head-width", "6",
    "--patch-size", "4", "--epochs", "1", "--batch-size", "256", "--track-every", "2",
    "--device", "cpu", "--quiet",
]  # fmt: skip


def test_run_summary_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "run.npz", tmp_path / "ranks.png"
    files = ["--out", str(out), "--plot", str(plot)]
    assert main(["train", "vit", *SMALL, "--scale", "0.5", "--seed", "3", *files]) == 0
    shape = ViTShape(
        image_size=8, n_channels=1, patch_size=4, n_layers=1, n_heads=2, width=16, mlp_width=16,
        head_width=6,
    )  # fmt: skip
    options = ViTOptions(lr=3e-3, batch_size=256, n_epochs=1, warmup_epochs=0.1)
    expected = train_vit(None, shape, options, scale=0.5, seed=3, track_every=2, device="cpu")
    run = ViTRun.load(out)
    for name, weight in expected.weights.items():
        np.testing.assert_array_equal(run.weights[name], weight)
    np.testing.assert_array_equal(run.history.stable_rank, expected.history.stable_rank)
    assert capsys.readouterr().out.strip() == expected.summary()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_stopped_run_goes_on_and_its_checkpoints_can_be_tracked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "vit", *SMALL, "--checkpoint", str(folder)]
    assert main([*arguments, "--max-seconds", "0"]) == 3
    assert "1 of 6 steps made" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "all 6 steps made" in capsys.readouterr().out
    places = [str(place) for place in sorted(folder.glob("step-*"))]
    reference = ["--reference", str(folder / "initial.safetensors")]
    assert main(["track", *places, *reference]) == 0
    assert "at step 6 (2 records, 2 heads)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "absent"], "there is no file or folder absent"),
        (["--patch-size", "3"], "patch_size=3 must divide image_size=8"),
        (["--lr", "-1"], "lr must be positive"),
        (["--precision", "float16", "--device", "cpu"], "needs a GPU"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "vit", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynalyze train: error: ")
    assert message in error
    assert error.count("\n") == 1
