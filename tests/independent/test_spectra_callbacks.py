"""Callbacks in the trainers of Lightning and Hugging Face: resumes, several fits, stops, files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from attention_modules import SeparateProjections  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dynalyze import spectra  # noqa: E402
from dynalyze.errors import InvalidInputError, SavedFileError  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("working_torchvision"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:::(lightning|transformers|accelerate|torch)"),
]


def _steps(callback: Any) -> list[int]:
    return list(callback.tracker.history.steps.tolist())


def _lightning(folder: Path, n_steps: int, *callbacks: Any) -> Any:
    pl = pytest.importorskip("lightning.pytorch")
    return pl.Trainer(
        max_steps=n_steps, callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
        default_root_dir=folder,
    )  # fmt: skip


def _module() -> Any:
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(SeparateProjections(), SeparateProjections())

        def training_step(self, batch: Any, _: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()


def _batches() -> Any:
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 2)


def test_a_lightning_callback_that_resumed_begins_anew_in_a_later_fit(tmp_path: Path) -> None:
    trainer = _lightning(tmp_path, 2, spectra.lightning_callback())
    trainer.fit(_module(), _batches())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    callback = spectra.lightning_callback()
    _lightning(tmp_path, 3, callback).fit(_module(), _batches(), ckpt_path=tmp_path / "two.ckpt")
    assert _steps(callback) == [0, 1, 2, 3]
    other = _module()
    with torch.no_grad():
        other.net[0].q_proj.weight.mul_(2.0)
    _lightning(tmp_path, 1, callback).fit(other, _batches())
    assert _steps(callback) == [0, 1]
    np.testing.assert_array_equal(callback.tracker.history.frobenius_norm[0], 0.0)


def test_a_lightning_fit_that_goes_on_goes_on_with_the_records(tmp_path: Path) -> None:
    callback, module = spectra.lightning_callback(every=2), _module()
    trainer = _lightning(tmp_path, 2, callback)
    trainer.fit(module, _batches())
    trainer.fit_loop.epoch_loop.max_steps = 5
    trainer.fit(module, _batches())
    assert _steps(callback) == [0, 2, 4, 5]


def test_lightning_records_have_its_steps_where_a_checkpoint_has_none_of_them(
    tmp_path: Path,
) -> None:
    trainer = _lightning(tmp_path, 2)
    trainer.fit(_module(), _batches())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    callback = spectra.lightning_callback()
    _lightning(tmp_path, 4, callback).fit(_module(), _batches(), ckpt_path=tmp_path / "two.ckpt")
    assert _steps(callback) == [2, 3, 4]


def test_two_lightning_callbacks_for_different_layers_are_saved_and_resumed(tmp_path: Path) -> None:
    def fit(n_steps: int, resume: Path | None) -> list[Any]:
        both = [spectra.lightning_callback(layers=f"net.{i}") for i in range(2)]
        trainer = _lightning(tmp_path, n_steps, *both)
        trainer.fit(_module(), _batches(), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "both.ckpt")
        return both

    fit(2, None)
    for i, callback in enumerate(fit(3, tmp_path / "both.ckpt")):
        assert _steps(callback) == [0, 1, 2, 3]
        assert callback.tracker.history.layer_names == (f"net.{i}",)


@pytest.mark.parametrize("make", [spectra.lightning_callback, spectra.trainer_callback])
def test_an_optimizer_would_count_steps_twice_and_is_refused(make: Any) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    with pytest.raises(InvalidInputError, match=r"optimizer= must be left out of a callback"):
        make(optimizer=optimizer)


def _gpt() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 12, "n_layer": 1, "n_head": 2, "vocab_size": 7, "n_positions": 8}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**sizes, **still, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


def _hugging_face(
    folder: Path, n_steps: int, *callbacks: Any, resume: Any = None, **options: Any
) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    data = [{"input_ids": row, "labels": row} for row in torch.arange(96).reshape(12, 8) ** 2 % 7]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=n_steps, per_device_train_batch_size=4, report_to=[],
        save_strategy="steps", save_steps=1, disable_tqdm=True, use_cpu=True, learning_rate=1e-2,
        lr_scheduler_type="constant", seed=1,
        resume_from_checkpoint=None if resume is None else str(resume), **options,
    )  # fmt: skip
    model = _gpt()
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.mark.parametrize("every", [1, 3])
def test_the_last_record_is_of_the_last_step_where_the_best_weights_are_put_back(
    tmp_path: Path, every: int
) -> None:
    transformers = pytest.importorskip("transformers")
    callback, each = spectra.trainer_callback(every=every), spectra.trainer_callback()
    trainer = _hugging_face(
        tmp_path, 9, callback, each, transformers.EarlyStoppingCallback(1), eval_strategy="steps",
        eval_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=True,
    )  # fmt: skip
    assert trainer.state.global_step == 2
    history = callback.tracker.history
    assert history.steps.tolist() == ([0, 1, 2] if every == 1 else [0, 2])
    # The weights of step 2 are in its checkpoint, those of step 1 in the model.
    found = spectra.track_checkpoints(
        [tmp_path / "checkpoint-2"], reference=_gpt().state_dict(), n_heads=2
    )
    np.testing.assert_allclose(history.frobenius_norm[-1], found.frobenius_norm[-1], rtol=1e-6)


def test_a_reference_that_is_given_again_does_not_keep_the_trainer_from_resuming(
    tmp_path: Path,
) -> None:
    start = _gpt().state_dict()
    _hugging_face(tmp_path, 2, spectra.trainer_callback(reference=start))
    callback = spectra.trainer_callback(reference=start)
    _hugging_face(tmp_path, 3, callback, resume=tmp_path / "checkpoint-2")
    assert _steps(callback) == [0, 1, 2, 3]


def test_the_trainer_resumes_from_where_its_arguments_say(tmp_path: Path) -> None:
    _hugging_face(tmp_path / "first", 2, spectra.trainer_callback())
    callback = spectra.trainer_callback()
    _hugging_face(tmp_path / "new", 3, callback, resume=tmp_path / "first" / "checkpoint-2")
    assert _steps(callback) == [0, 1, 2, 3]


def test_a_damaged_state_beside_a_checkpoint_is_named(tmp_path: Path) -> None:
    _hugging_face(tmp_path, 1, spectra.trainer_callback())
    state = tmp_path / "checkpoint-1" / "spectra.pt"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(SavedFileError, match=r"spectra.pt cannot be read .* damaged"):
        _hugging_face(tmp_path, 2, spectra.trainer_callback(), resume=tmp_path / "checkpoint-1")
