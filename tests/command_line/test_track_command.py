"""``dynalyze track`` on checkpoints on disk."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dynalyze import spectra  # noqa: E402
from dynalyze.cli import main  # noqa: E402


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    paths = []
    for step in (0, 100, 250):
        path = tmp_path / f"run-{step}.pt"
        torch.save(layer.state_dict(), path)
        paths.append(str(path))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return paths


def test_json_and_saved_history_are_what_track_checkpoints_gives(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "history.npz"
    assert main(["track", *checkpoints, "--heads", "2", "--json", "--out", str(out)]) == 0
    expected = spectra.track_checkpoints(checkpoints, n_heads=2)
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == [0, 100, 250]
    assert [h["head"] for h in printed["heads"]] == [0, 0, 1, 1]
    assert printed["heads"][3]["stable_rank"] == expected.stable_rank[:, 1, 1].tolist()
    saved = spectra.SpectraHistory.load(out)
    np.testing.assert_array_equal(saved.singular_values, expected.singular_values)


def test_table_and_figure(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "ranks.png"
    assert main(["track", *checkpoints, "--heads", "2", "--plot", str(figure)]) == 0
    table = capsys.readouterr().out
    assert "at step 250 (3 records, 2 heads)" in table
    mean = spectra.track_checkpoints(checkpoints, n_heads=2).stable_rank[-1, 0].mean()
    assert f"{mean:.2f}" in table
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_change_is_that_since_the_first_checkpoint_or_the_reference(
    checkpoints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["track", *checkpoints[1:], "--heads", "2"]) == 0
    assert "since step 100, at step 250 (2 records" in capsys.readouterr().out
    later = ["track", *checkpoints[1:], "--heads", "2", "--reference", checkpoints[0]]
    assert main(later) == 0
    assert "since the reference, at step 250 (2 records" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "n_heads is not known"),
        (["--heads", "3"], "do not divide into 3 parts of 3 heads"),
        (["--heads", "2", "--steps", "1"], "steps has 1 entries for 3 checkpoints"),
        (["--heads", "2", "--layers", "blocks.*"], "matches none of the attention layers"),
        (["--heads", "2", "--reference", "absent.pt"], "no checkpoint at absent.pt"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    checkpoints: list[str],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["track", *checkpoints, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynalyze track: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_checkpoints_as_a_shell_lists_them_are_read_in_the_order_of_their_numbers(
    checkpoints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    later = Path(checkpoints[1]).rename(Path(checkpoints[1]).with_name("run-1000.pt"))
    listed = sorted([checkpoints[0], str(later), checkpoints[2]])
    assert main(["track", *listed, "--heads", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == [0, 250, 1000]
    assert main(["track", *reversed(listed), "--heads", "2"]) == 2
    assert "do not grow" in capsys.readouterr().err
