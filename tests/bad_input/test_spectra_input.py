"""Models and options that cannot be tracked: what the errors say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from attention_modules import SeparateProjections  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from dynalyze import spectra  # noqa: E402
from dynalyze.errors import (  # noqa: E402
    InvalidInputError,
    SavedFileError,
    UnreadableCheckpointWarning,
)


def _model(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.MultiheadAttention(width, 2) for _ in range(2)]
    return nn.ModuleList(layers)


def test_model_without_attention() -> None:
    with pytest.raises(InvalidInputError, match=r"no attention .* in Linear: .*layouts=\{"):
        spectra.track(nn.Linear(3, 3))


def test_something_that_is_no_model() -> None:
    with pytest.raises(InvalidInputError, match=r"model=dict must be .*track_checkpoints"):
        spectra.track({})  # type: ignore[arg-type]


def test_tied_layers() -> None:
    model: Any = _model()
    model[1].in_proj_weight = model[0].in_proj_weight
    with pytest.raises(InvalidInputError, match=r"'0' and '1' share .*in_proj_weight.*allow_tied"):
        spectra.track(model)
    assert spectra.track(model, layers="1").history.layer_names == ("1",)
    assert len(spectra.track(model, allow_tied=True).history.layer_names) == 2


def test_queries_tied_to_keys() -> None:
    class Shared(SeparateProjections):
        def __init__(self) -> None:
            super().__init__(width=8)
            self.k_proj = self.q_proj

    with pytest.raises(InvalidInputError, match=r"for both W_Q and W_K"):
        spectra.track(Shared())


def test_frozen_weights() -> None:
    model = _model().requires_grad_(False)
    with pytest.raises(InvalidInputError, match=r"none of the attention weights is trained"):
        spectra.track(model)
    assert len(spectra.track(model, allow_frozen=True).history.steps) == 1
    model[0].in_proj_weight.requires_grad_(True)  # type: ignore[index, union-attr]
    assert len(spectra.track(model).history.steps) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantized_weights(dtype: torch.dtype) -> None:
    model: Any = _model()
    model[1].out_proj.weight = nn.Parameter(
        model[1].out_proj.weight.detach().to(dtype), requires_grad=False
    )
    with pytest.raises(InvalidInputError, match=r"1\.out_proj\.weight has dtype .*dequantize"):
        spectra.track(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_weights_packed_by_a_quantized_layer() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 2
            self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 8)
            self.v_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 8)

    packed = torch.ao.quantization.quantize_dynamic(Apart(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(InvalidInputError, match=r"q_proj\.weight is a method.*dequantize"):
        spectra.attention_products(packed)


def test_weights_on_the_meta_device() -> None:
    with pytest.raises(InvalidInputError, match=r"device meta, must be .* held in memory"):
        spectra.track(_model().to("meta"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    model: Any = _model()
    tracker = spectra.track(model)
    with torch.no_grad():
        model[1].in_proj_weight[3, 3] = value
    with pytest.raises(InvalidInputError, match=r"'1' has weights that are NaN .* at step 1: "):
        tracker.step()
    assert tracker.history.steps.tolist() == [0]
    with pytest.raises(InvalidInputError, match=r"at the start"):
        spectra.track(model)


def test_architecture_that_changes_between_checkpoints() -> None:
    first, wider = _model(8).state_dict(), _model(16).state_dict()
    with pytest.raises(InvalidInputError, match=r"shape .* at step 1, .* the architecture changed"):
        spectra.track_checkpoints([first, wider], n_heads=2)
    shorter = {name: w for name, w in first.items() if not name.startswith("1.")}
    with pytest.raises(InvalidInputError, match=r"lacks 2 of 4 weights.*1\.in_proj"):
        spectra.track_checkpoints([first, shorter], n_heads=2)


def test_checkpoints_that_do_not_tell_enough() -> None:
    state = _model().state_dict()
    with pytest.raises(InvalidInputError, match=r"n_heads is not known"):
        spectra.track_checkpoints([state])
    with pytest.raises(InvalidInputError, match=r"n_heads=0: must be a positive integer"):
        spectra.track_checkpoints([state], n_heads=0)
    with pytest.raises(InvalidInputError, match=r"24 rows, .* 3 parts of 3 heads"):
        spectra.track_checkpoints([state], n_heads=3)
    for n_heads in (None, 2):
        with pytest.raises(InvalidInputError, match=r"no attention .* the 1 .* names weight: if"):
            spectra.track_checkpoints([{"weight": torch.ones(2, 2)}], n_heads=n_heads)
    with pytest.raises(InvalidInputError, match=r"checkpoints is empty"):
        spectra.track_checkpoints([])
    with pytest.raises(InvalidInputError, match=r"steps has 1 entries for 2"):
        spectra.track_checkpoints([state, state], n_heads=2, steps=[0])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at"):
        spectra.track_checkpoints(["missing.safetensors"], n_heads=2)


def test_single_checkpoint_in_place_of_a_list(tmp_path: Path) -> None:
    for one, kind in (
        ("run/step_0.pt", "str"),
        (tmp_path, "PosixPath"),
        (_model().state_dict(), ""),
    ):
        with pytest.raises(InvalidInputError, match=rf"is a single {kind}.*give a list"):
            spectra.track_checkpoints(one, n_heads=2)


def test_folders_without_one_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no files of weights .* name a folder or file"
    ):
        spectra.track_checkpoints([tmp_path], n_heads=2)
    for step in (0, 1):
        torch.save(_model().state_dict(), tmp_path / f"step_{step}.pt")
    with pytest.raises(FileNotFoundError, match=r"holds 2 files .* name the files themselves"):
        spectra.track_checkpoints([tmp_path], n_heads=2)


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"epoch,loss\n1,0.5\n", b"\x80\x02}q\x00.", b"0."]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(SavedFileError, match=r"weights.pt .*[Ss]ave model.state_dict\(\)"):
        spectra.track_checkpoints([path], n_heads=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"every=0 must be at least 1 step"),
        ({"every": 1.5}, r"every=1.5 must be at least 1 step"),
        ({"first_step": 1.5}, r"first_step=1.5 must be a number of steps"),
        ({"n_values": 2.0}, r"n_values=2.0 must be at least 1 or None"),
        ({"rank_rtol": "0.1"}, r"rank_rtol='0.1' must lie between 0 and 1"),
        ({"n_values": 0}, r"n_values=0 must be at least 1 or None"),
        ({"spectrum": "all"}, r"spectrum='all' must be 'leading' or 'full'"),
        ({"n_directions": -1}, r"n_directions=-1 must be a number, 0 or larger"),
        ({"rank_rtol": 1.0}, r"rank_rtol=1.0 must lie between 0 and 1"),
        ({"dtype": torch.float16}, r"dtype=torch.float16 must be torch.float32"),
        ({"layers": "decoder.*"}, r"layers='decoder.\*' matches none .*: 0, 1\."),
        ({"layouts": {"0": spectra.AttentionLayout("q", "k", "v")}}, r"does not fit module '0'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        spectra.track(_model(), **options)


def test_state_of_another_run() -> None:
    first, second = spectra.track(_model()), spectra.track(nn.ModuleList([_model()[0]]))  # type: ignore[index]
    with pytest.raises(InvalidInputError, match=r"from another start"):
        second.load_state_dict(first.state_dict())
    other = spectra.track(_model(), n_values=3)
    with pytest.raises(InvalidInputError, match=r"keeps 8 values .*same n_values"):
        other.load_state_dict(first.state_dict())


def test_questions_about_records_that_do_not_exist() -> None:
    history = spectra.track(_model()).history
    with pytest.raises(InvalidInputError, match=r"step=7 was not recorded: choose one of 0"):
        history.index(7)
    with pytest.raises(InvalidInputError, match=r"no layer=0, head=2: .*\[2, 2\] heads"):
        history.unit(0, 2)
    with pytest.raises(InvalidInputError, match=r"product='QK' must be one of W_K W_Q, W_V W_O"):
        history.plot_spectra(product="QK")
    with pytest.raises(InvalidInputError, match=r"layer=2 must lie in 0 … 1"):
        history.plot_stable_rank([2])
    with pytest.raises(InvalidInputError, match=r"layers is empty: name at least one"):
        history.plot_stable_rank([])
    with pytest.raises(InvalidInputError, match=r"did not change"):
        spectra.plot_final_spectrum(history)
    assert np.isfinite(history.stable_rank).all()


def test_detection_options_and_too_few_records() -> None:
    tracker = spectra.track(_model())
    with pytest.raises(InvalidInputError, match=r"has 1 records, fewer than persistence=3"):
        spectra.detect_stages(tracker.history)
    for option, message in (
        ({"threshold": 1.0}, r"threshold=1.0 must lie between 0 and 1"),
        ({"noise_factor": 1.0}, r"noise_factor=1.0 must exceed 1"),
        ({"bulk_factor": 0.5}, r"bulk_factor=0.5 must be at least 1"),
        ({"persistence": 0}, r"persistence=0 must be at least 1 record"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            spectra.detect_stages(tracker.history, **option)  # type: ignore[arg-type]


def test_lora_ranks_of_what_cannot_be_adapted_or_compared() -> None:
    state = {"block.q_proj.weight": torch.ones(4, 4), "block.mlp.weight": torch.ones(4, 4)}
    wider = {name: torch.ones(8, 8) for name in state}
    bad = {name: torch.full((4, 4), torch.nan) for name in state}
    suggest = spectra.suggest_lora_ranks
    with pytest.raises(InvalidInputError, match=r"no module that LoRA can adapt .*Multihead"):
        suggest(_model().state_dict(), _model().state_dict())
    with pytest.raises(
        InvalidInputError, match=r"mlp\.weight has shape \(4, 4\) before and \(8, 8\)"
    ):
        suggest(state, wider, modules="*.mlp")
    with pytest.raises(InvalidInputError, match=r"q_proj\.weight holds NaN"):
        suggest(state, bad, modules=["*q_proj"])
    with pytest.raises(InvalidInputError, match=r"lacks 1 of 1 weights looked for"):
        suggest(state, {"x": torch.ones(4, 4)}, modules="*.mlp")
    with pytest.raises(InvalidInputError, match=r"after is missing"):
        suggest(state)
    with pytest.raises(InvalidInputError, match=r"after must be left out"):
        suggest(spectra.track(_model()), state)
    with pytest.raises(InvalidInputError, match=r"share=0 must lie in \(0, 1\]"):
        suggest(state, state, share=0)
    with pytest.raises(InvalidInputError, match=r"max_rank=0 must be at least 1"):
        suggest(state, state, max_rank=0)


def _checkpoints(folder: Path, *steps: int) -> list[Path]:
    paths = [folder / f"checkpoint-{step}.pt" for step in steps]
    for path in paths:
        torch.save(_model().state_dict(), path)
    return paths


def test_checkpoints_in_the_order_of_letters_are_not_taken_for_that_of_training(
    tmp_path: Path,
) -> None:
    paths = _checkpoints(tmp_path, 100, 200, 1000)
    assert spectra.track_checkpoints(paths, n_heads=2).steps.tolist() == [100, 200, 1000]
    with pytest.raises(InvalidInputError, match=r"\[100, 1000, 200\], do not grow .* give steps="):
        spectra.track_checkpoints(sorted(paths), n_heads=2)


@pytest.mark.parametrize("steps", [[3, 2, 1], [1, 1, 2], [0.5, 1.0, 2.0], ["a", "b", "c"]])
def test_steps_that_do_not_grow(tmp_path: Path, steps: list[Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"steps=\[.*\] must be whole numbers that grow"):
        spectra.track_checkpoints(_checkpoints(tmp_path, 1, 2, 3), n_heads=2, steps=steps)


def test_states_that_share_their_memory_are_no_checkpoints() -> None:
    model = _model()
    states = [model.state_dict(), model.state_dict()]
    with pytest.raises(InvalidInputError, match=r"share their memory.*keep copies"):
        spectra.track_checkpoints(states, n_heads=2)
    copies = [{n: w.clone() for n, w in state.items()} for state in states]
    assert len(spectra.track_checkpoints(copies, n_heads=2).steps) == 2


@pytest.mark.parametrize("left", ["nothing", "shards without their index", "an index of no use"])
def test_a_folder_of_a_run_killed_while_it_saved_is_left_out(tmp_path: Path, left: str) -> None:
    paths = _checkpoints(tmp_path, 1, 2)
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    if left == "shards without their index":
        for part in (1, 2):
            (folder / f"model-{part}-of-3.safetensors").write_bytes(b"")
    elif left == "an index of no use":
        (folder / "model.safetensors.index.json").write_text("[1]")
    with pytest.warns(UnreadableCheckpointWarning, match=r"1 of 3 .* left out: .*checkpoint-3"):
        history = spectra.track_checkpoints([*paths, folder], n_heads=2)
    assert history.steps.tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "prune"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_each_forward_pass_computes_anew_are_refused(kind: str) -> None:
    model = SeparateProjections(8, 2)
    if kind == "prune":
        prune.l1_unstructured(model.k_proj, "weight", 0.5)
    else:
        getattr(nn.utils, kind)(model.k_proj)
    model(torch.ones(1, 3, 8))
    with pytest.raises(InvalidInputError, match=r"k_proj.weight is computed anew .*prune.remove"):
        spectra.track(model)
    if kind == "prune":
        prune.remove(model.k_proj, "weight")
        spectra.track(model)


@pytest.mark.parametrize("missing", ["step", "history", "directions", "reference", "steps"])
def test_a_state_with_parts_missing_is_refused_in_words(missing: str) -> None:
    state = spectra.track(_model()).state_dict()
    (state["history"] if missing == "steps" else state).pop(missing)
    with pytest.raises(
        InvalidInputError, match=r"not all that state_dict\(\) of a tracker returns"
    ):
        spectra.track(_model()).load_state_dict(state)
