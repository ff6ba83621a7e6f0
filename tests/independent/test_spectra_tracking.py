"""Tracking in plain loops, by hooks, in other trainers, with adapters, and after the fact."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from dynalyze import spectra  # noqa: E402
from dynalyze.errors import (  # noqa: E402
    InvalidInputError,
    SavedFileError,
    UnreadableCheckpointWarning,
)

pytestmark = [
    pytest.mark.usefixtures("working_torchvision"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # What other packages warn of when they are imported or run is no concern of these tests.
    pytest.mark.filterwarnings("ignore:::(lightning|transformers|accelerate|torch)"),
]


def _encoder(n_layers: int = 2) -> nn.Module:
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(8, 4, 12, generator=generator), torch.randn(8, 4, 12, generator=generator)


def _train(model: nn.Module, optimizer: Any, n_steps: int, tracker: Any = None) -> None:
    x, y = _data()
    for _ in range(n_steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        if tracker is not None:
            tracker.step()


def _dense_change(
    before: tuple[spectra.AttentionProducts, ...], after: tuple[spectra.AttentionProducts, ...]
) -> np.ndarray:
    """Singular values of each change, (2, N, d), by a dense SVD in double precision."""
    values = [
        [
            torch.linalg.svdvals(_product(b, p) - _product(a, p))
            for a, b in zip(before, after, strict=True)
        ]
        for p in range(2)
    ]
    return np.stack([torch.cat(part).numpy() for part in values])


def _product(product: spectra.AttentionProducts, p: int) -> Tensor:
    if p == 0:
        return product.W_K.double() @ product.W_Q.double().mT
    return product.W_V.double() @ product.W_O.double().mT


def _assert_same(first: spectra.SpectraHistory, second: spectra.SpectraHistory) -> None:
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)


def test_plain_loop_records_every_so_many_steps_and_at_the_end() -> None:
    model = _encoder()
    start = spectra.attention_products(model)
    with spectra.track(model, every=3, n_values=12) as tracker:
        _train(model, torch.optim.Adam(model.parameters(), 1e-2), 8, tracker)
    history = tracker.history
    assert history.steps.tolist() == [0, 3, 6, 8]
    reference = _dense_change(start, spectra.attention_products(model))
    np.testing.assert_allclose(
        history.singular_values[-1], reference, atol=1e-6 * reference.max(), rtol=0
    )
    entropy = reference**2 / (reference**2).sum(-1, keepdims=True)
    effective = np.exp(-(entropy * np.log(entropy + 1e-300)).sum(-1))
    np.testing.assert_allclose(history.effective_rank[-1], effective, rtol=1e-5)
    np.testing.assert_allclose(history.effective_rank_bound[-1], effective, rtol=1e-5)
    numerical = (reference > 0.01 * reference[..., :1]).sum(-1)
    np.testing.assert_array_equal(history.numerical_rank[-1], numerical)


def test_no_change_has_rank_zero() -> None:
    history = spectra.track(_encoder()).history
    for ranks in (history.stable_rank, history.effective_rank, history.numerical_rank):
        np.testing.assert_array_equal(ranks, np.zeros((1, 2, 4)))


def test_a_head_that_does_not_move_has_rank_zero_beside_those_that_do() -> None:
    model = _encoder(1)
    tracker = spectra.track(model)
    with torch.no_grad():
        weight = model.get_parameter("layers.0.self_attn.in_proj_weight")
        weight[12 + 6 : 12 + 12] += 1.0  # W_K of head 1
    tracker.step()
    history = tracker.history
    assert history.stable_rank[1, 0, 0] == 0.0
    assert history.stable_rank[1, 0, 1] > 0.0
    assert np.isfinite(history.effective_rank).all()
    np.testing.assert_array_equal(history.stable_rank[1, 1], 0.0)


def test_optimizer_hook_counts_the_same_steps() -> None:
    histories = []
    for by_hook in (True, False):
        model = _encoder()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with spectra.track(model, every=2, optimizer=optimizer if by_hook else None) as tracker:
            _train(model, optimizer, 5, None if by_hook else tracker)
        _train(model, optimizer, 2)
        histories.append(tracker.history)
    assert histories[0].steps.tolist() == [0, 2, 4, 5]
    _assert_same(*histories)


def test_principal_angles_follow_a_rotation() -> None:
    model = _encoder(1)
    tracker = spectra.track(model, n_directions=1)
    weight = model.get_parameter("layers.0.self_attn.in_proj_weight")
    start = weight.detach().clone()
    key, query = torch.zeros(12), torch.zeros(12)
    key[0], query[1] = 100.0, 1.0
    turned = torch.tensor(0.3)
    turned_key = 100.0 * torch.cat(
        [turned.cos()[None], torch.zeros(1), turned.sin()[None], torch.zeros(9)]
    )
    with torch.no_grad():
        weight[0:12] = 0.0
        for direction in (key, turned_key):
            weight[:] = start
            weight[0] += query  # W_Q(0) stays: the change of W_K W_Qᵀ is dominated by ΔW_K W_Qᵀ
            weight[12] += direction
            tracker.step()
    angle = tracker.history.left_angles[2, 0, 0, 0]
    np.testing.assert_allclose(angle, 0.3, atol=0.02)


def test_resumed_tracker_continues_the_records() -> None:
    def run(stop: int | None) -> spectra.SpectraHistory:
        model = _encoder()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        tracker = spectra.track(model, every=2)
        if stop is not None:
            _train(model, optimizer, stop, tracker)
            state = copy.deepcopy(tracker.state_dict())
            tracker = spectra.track(model, every=2, reference=state["reference"])
            tracker.load_state_dict(state)
            assert tracker.n_steps == stop
        _train(model, optimizer, 9 - (stop or 0), tracker)
        tracker.close()
        return tracker.history

    _assert_same(run(None), run(5))


def test_saved_history_comes_back_the_same(tmp_path: Path) -> None:
    model = _encoder()
    with spectra.track(model) as tracker:
        _train(model, torch.optim.SGD(model.parameters(), 0.1), 3, tracker)
    tracker.history.save(tmp_path / "history.npz")
    _assert_same(tracker.history, spectra.SpectraHistory.load(tmp_path / "history.npz"))
    frame = tracker.history.to_dataframe()
    assert len(frame) == 4 * 2 * 4
    row = frame[(frame.step == 3) & (frame["product"] == "W_V W_O") & (frame.layer == 1)].iloc[1]
    assert row.stable_rank == tracker.history.stable_rank[3, 1, 3]
    assert row["head"] == 1


def _save_checkpoints(folder: Path, kind: str) -> tuple[list[Path], spectra.SpectraHistory, Any]:
    from safetensors.torch import save_file

    model = _encoder()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    tracker = spectra.track(model, n_values=None, spectrum="full")
    paths = []
    for step in range(3):
        path = folder / f"step_{10 * step:04d}.{kind}"
        if kind == "safetensors":
            save_file(model.state_dict(), path)
        elif kind == "ckpt":
            state = {f"model.{name}": w for name, w in model.state_dict().items()}
            torch.save({"epoch": step, "state_dict": state}, path)
        else:
            torch.save(model.state_dict(), path)
        paths.append(path)
        if step < 2:
            _train(model, optimizer, 1, tracker)
    return paths, tracker.history, model


@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "pt"])
def test_checkpoints_give_what_the_tracker_saw(tmp_path: Path, kind: str) -> None:
    paths, live, model = _save_checkpoints(tmp_path, kind)
    by_names = spectra.track_checkpoints(paths, n_heads=2)
    assert by_names.steps.tolist() == [0, 10, 20]
    by_model = spectra.track_checkpoints(paths, model=model)
    for found in (by_names, by_model):
        np.testing.assert_array_equal(found.singular_values, live.singular_values)
        np.testing.assert_array_equal(found.left_angles, live.left_angles)


def test_checkpoints_with_the_head_count_in_config_json(tmp_path: Path) -> None:
    paths, live, _ = _save_checkpoints(tmp_path, "safetensors")
    (tmp_path / "config.json").write_text('{"model": {"n_heads": 2}}')
    found = spectra.track_checkpoints(paths)
    np.testing.assert_array_equal(found.frobenius_norm, live.frobenius_norm)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_truncated_checkpoints_are_left_out_with_a_warning(tmp_path: Path, kind: str) -> None:
    paths, live, _ = _save_checkpoints(tmp_path, kind)
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    with pytest.warns(UnreadableCheckpointWarning, match=r"1 of \d+ .*step_0010.*truncated"):
        found = spectra.track_checkpoints(paths, n_heads=2)
    np.testing.assert_array_equal(found.steps, [0, 20])
    np.testing.assert_array_equal(found.frobenius_norm, np.delete(live.frobenius_norm, 1, axis=0))


def test_a_reference_or_a_single_checkpoint_must_be_readable(tmp_path: Path) -> None:
    paths, _, _ = _save_checkpoints(tmp_path, "safetensors")
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    with pytest.raises(SavedFileError, match=r"truncated"):
        spectra.track_checkpoints(paths, n_heads=2)
    with pytest.raises(SavedFileError, match=r"truncated"):
        spectra.track_checkpoints(paths[:1], reference=paths[1], n_heads=2)


def test_half_precision_weights_are_upcast() -> None:
    model = _encoder().to(torch.bfloat16)
    start = spectra.attention_products(model)
    assert start[0].W_Q.dtype == torch.float32
    tracker = spectra.track(model, n_values=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    tracker.step()
    reference = _dense_change(start, spectra.attention_products(model))
    np.testing.assert_allclose(
        tracker.history.singular_values[1], reference[..., :4], rtol=0, atol=1e-6 * reference.max()
    )


class _Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = 3
        self.kv = nn.Parameter(torch.randn(12, 2 * 12))
        self.query = nn.Parameter(torch.randn(12, 12))
        self.mix = nn.Parameter(torch.randn(12, 12))


@pytest.mark.parametrize("key", [_Mixer, "*.mixer"])
def test_declared_layout(key: Any) -> None:
    model = nn.ModuleDict({"block": nn.ModuleDict({"mixer": _Mixer()})})
    layout = spectra.AttentionLayout(
        "query",
        spectra.WeightSlice("kv", 0, 2),
        spectra.WeightSlice("kv", 1, 2),
        "mix",
        n_heads="n",
        transposed=True,
    )
    (found,) = spectra.attention_products(model, layouts={key: layout})
    mixer = model["block"]["mixer"]
    x = torch.randn(5, 12)
    queries, keys = (x @ w for w in (mixer.query, mixer.kv[:, :12]))
    for h in range(3):
        own = queries[:, 4 * h : 4 * h + 4] @ keys[:, 4 * h : 4 * h + 4].T
        torch.testing.assert_close(x @ found.key_query()[h].mT @ x.T, own)
        block = slice(4 * h, 4 * h + 4)
        torch.testing.assert_close(
            found.value_output()[h], (mixer.kv[:, 12:][:, block] @ mixer.mix[block]).detach()
        )


@pytest.mark.parametrize("wrapped", ["q_proj", "c_attn"])
def test_adapters_are_part_of_the_product(wrapped: str) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 7, "n_positions": 8}
    llama = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 7,
    }  # fmt: skip
    base: Any = (
        transformers.GPT2Model(transformers.GPT2Config(**sizes))
        if wrapped == "c_attn"
        else transformers.LlamaModel(transformers.LlamaConfig(**llama))
    )
    targets = ["c_attn", "c_proj"] if wrapped == "c_attn" else ["q_proj", "v_proj"]
    before = spectra.attention_products(base.eval())
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=wrapped == "c_attn"
    )
    model = peft.get_peft_model(base, config)
    with spectra.track(model, n_values=8) as tracker:
        assert not tracker.history.frobenius_norm.any()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        tracker.step()
    found = spectra.attention_products(model)
    merged = spectra.attention_products(model.merge_and_unload())
    for adapted, plain in zip(found, merged, strict=True):
        torch.testing.assert_close(adapted.key_query(), plain.key_query(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            adapted.value_output(), plain.value_output(), rtol=1e-4, atol=1e-5
        )
    reference = _dense_change(before, merged)[..., :8]
    history = tracker.history
    np.testing.assert_allclose(
        history.singular_values[1], reference, atol=2e-6 * reference.max(), rtol=0
    )
    # W_K + 2, W_Q + 2: never more than r + r directions, whatever the head dimension.
    assert history.numerical_rank.max() <= 4
    assert history.layer_names == tuple(product.layer for product in before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, r"not of the form W \+ s B A"),
        ({"target_modules": ["self_attn"]}, r"nn.MultiheadAttention adapted by peft as a whole"),
    ],
)
def test_adapters_that_are_not_added_are_refused(options: dict[str, Any], message: str) -> None:
    peft = pytest.importorskip("peft")
    base: nn.Module = _encoder()
    if "q_proj" in options["target_modules"]:
        base = nn.ModuleDict({n: nn.Linear(8, 8) for n in ("q_proj", "k_proj", "v_proj", "o_proj")})
        base.num_heads = 2  # type: ignore[assignment]
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, **options))
    with pytest.raises(InvalidInputError, match=message):
        spectra.attention_products(model)


class _Compiled(nn.Module):
    """What torch.compile returns, as far as names go; importing its compiler takes seconds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


@pytest.mark.parametrize("wrap", [nn.DataParallel, _Compiled])
def test_wrapped_models_keep_the_names_of_their_layers(wrap: Any) -> None:
    model = _encoder()
    tracker = spectra.track(wrap(model))
    assert tracker.history.layer_names == ("layers.0.self_attn", "layers.1.self_attn")
    _train(model, torch.optim.SGD(model.parameters(), 0.1), 1, tracker)
    assert (tracker.history.frobenius_norm[1] > 0).all()


def test_lightning_callback_sees_what_a_plain_loop_sees(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = _encoder()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(n_steps: int, resume: Path | None = None) -> Any:
        callback = spectra.lightning_callback(every=2)
        trainer = pl.Trainer(
            max_steps=n_steps, callbacks=[callback], logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
            default_root_dir=tmp_path,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*_data()), 8)
        trainer.fit(Module(), loader, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{n_steps}.ckpt")
        return callback.tracker.history

    unbroken = fit(6)
    assert unbroken.steps.tolist() == [0, 2, 4, 6]
    model = _encoder()
    with spectra.track(model, every=2) as tracker:
        _train(model, torch.optim.SGD(model.parameters(), 0.1), 6, tracker)
    np.testing.assert_array_equal(unbroken.singular_values, tracker.history.singular_values)
    fit(4)
    _assert_same(fit(6, resume=tmp_path / "4.ckpt"), unbroken)


def test_trainer_callback_sees_what_the_weights_say(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    start = spectra.attention_products(model)
    callback = spectra.trainer_callback(every=2)
    images = torch.randn(12, 3, 8, 8)
    data = [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(images)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-2,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    history = callback.tracker.history
    assert history.steps.tolist() == [0, 2, 3]
    reference = _dense_change(start, spectra.attention_products(model))[..., :10]
    np.testing.assert_allclose(
        history.singular_values[-1], reference, atol=1e-6 * reference.max(), rtol=0
    )
