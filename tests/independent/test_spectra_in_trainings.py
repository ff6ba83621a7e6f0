"""Tracking beside what trainings do: adapters, trainers' optimizers, precision, devices, types."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from claims import every

torch = pytest.importorskip("torch")
from attention_modules import SeparateProjections  # noqa: E402
from fake_device import fake_device  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dynalyze import spectra  # noqa: E402
from dynalyze.errors import InvalidInputError, UncountedStepsWarning  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("working_torchvision"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:::(transformers|accelerate|torch|peft)"),
]


def _model(n_layers: int = 1, **sizes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(SeparateProjections(**sizes) for _ in range(n_layers)))


def _move(model: nn.Module, size: float = 0.1, *, only: str = "") -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter.add_(size * torch.randn_like(parameter))


def _with_adapters(kind: str = "LoraConfig", **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(target_modules=["q_proj", "v_proj"], **options)
    return peft.get_peft_model(_model(), config)


def test_merged_adapters_count_once_and_disabled_ones_not_at_all() -> None:
    model = _with_adapters(r=2, lora_alpha=6)
    tracker = spectra.track(model)
    _move(model, only="lora_")
    tracker.step()
    model.merge_adapter()
    tracker.step()
    model.unmerge_adapter()
    tracker.step()
    with model.disable_adapter():
        tracker.step()
    tracker.step()
    norms = tracker.history.frobenius_norm[1:]
    assert (norms[0] > 0).all()
    for same in (1, 2, 4):
        np.testing.assert_allclose(norms[same], norms[0], rtol=1e-5)
    np.testing.assert_allclose(norms[3], 0.0, atol=1e-6)


def test_a_tracker_made_of_merged_adapters_starts_from_the_weights_in_use() -> None:
    model = _with_adapters(r=2)
    _move(model, only="lora_")
    model.merge_adapter()
    tracker = spectra.track(model, allow_frozen=True)
    model.unmerge_adapter()
    tracker.step()
    np.testing.assert_allclose(tracker.history.frobenius_norm[-1], 0.0, atol=1e-5)


def test_adapters_that_come_and_go_while_tracking_are_followed() -> None:
    peft = pytest.importorskip("peft")
    model = _model()
    before = spectra.attention_products(model)[0].key_query()
    tracker = spectra.track(model, n_values=None)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    tracker.step()
    adapted.merge_and_unload()
    tracker.step()
    change = spectra.attention_products(model)[0].key_query() - before
    values = torch.linalg.svdvals(change.double())[:, :8].numpy()
    assert values.max() > 1e-3
    for record in (1, 2):
        found = tracker.history.singular_values[record, 0][:, :8]
        np.testing.assert_allclose(found, values, atol=4e-6 * values.max())


def test_merging_while_tracking_leaves_the_change_and_a_missing_layer_is_named() -> None:
    model = _with_adapters(r=2, init_lora_weights=False)
    tracker = spectra.track(model)
    _move(model, only="lora_")
    tracker.step()
    merged = model.merge_and_unload()
    tracker.step()
    norms = tracker.history.frobenius_norm
    np.testing.assert_allclose(norms[2], norms[1], rtol=1e-5)
    del merged[0].q_proj
    with pytest.raises(InvalidInputError, match=r"no longer has the weight .*q_proj.*new tracker"):
        tracker.step()


@pytest.mark.parametrize("place", ["layer", "model"])
def test_a_compiled_module_is_followed_under_the_name_that_it_had(place: str) -> None:
    model = _model(2)
    plain = [products.layer for products in spectra.attention_products(model)]
    for i, layer in enumerate(model):
        model[i] = torch.compile(layer, backend="eager") if place == "layer" else layer
    whole = torch.compile(model, backend="eager") if place == "model" else model
    assert [products.layer for products in spectra.attention_products(whole)] == plain


def test_switched_adapters_report_the_one_in_use() -> None:
    peft = pytest.importorskip("peft")
    model = _with_adapters(r=2)
    model.add_adapter("b", peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    tracker = spectra.track(model)
    _move(model, only="lora_")
    tracker.step()
    model.set_adapter("b")
    tracker.step()
    assert tracker.history.numerical_rank[1].max() == 2
    assert tracker.history.numerical_rank[2].max() == 3


def test_a_resumed_run_of_adapters_continues() -> None:
    model = _with_adapters(r=2)
    _move(model, only="lora_")  # the start is not 0
    tracker = spectra.track(model)
    _move(model, only="lora_")
    tracker.step()
    state = copy.deepcopy(tracker.state_dict())
    resumed = spectra.track(model, reference=state["reference"])
    resumed.load_state_dict(state)
    _move(model, only="lora_")
    for each in (tracker, resumed):
        each.step()
    np.testing.assert_array_equal(tracker.history.singular_values, resumed.history.singular_values)


@pytest.mark.parametrize("kind", ["AdaLoraConfig", "IA3Config", "LoHaConfig"])
def test_adapters_of_other_kinds_are_refused_in_words(kind: str) -> None:
    options: dict[str, Any] = {
        "AdaLoraConfig": {"total_step": 9},
        "IA3Config": {"feedforward_modules": []},
    }
    model = _with_adapters(kind, **options.get(kind, {}))
    with pytest.raises(InvalidInputError, match=r"q_proj has an adapter of kind .* merge it"):
        spectra.track(model)


def test_an_optimizer_that_accelerate_wrapped_counts_its_steps() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = _model()
    wrapped = accelerate.Accelerator(cpu=True).prepare(torch.optim.SGD(model.parameters(), 0.1))
    with spectra.track(model, optimizer=wrapped, every=2) as tracker:
        for _ in range(3):
            model(torch.randn(2, 4, 16)).square().sum().backward()
            wrapped.step()
            wrapped.zero_grad()
    assert tracker.history.steps.tolist() == [0, 2, 3]


def test_something_without_hooks_is_refused_as_optimizer() -> None:
    with pytest.raises(InvalidInputError, match=r"optimizer is a list, .* call tracker\.step\(\)"):
        spectra.track(_model(), optimizer=[])


@pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="the setting is that of torch 2.9"
)
def test_precision_set_per_backend_neither_breaks_a_record_nor_is_changed() -> None:
    matmul, everything = torch.backends.cuda.matmul, torch.backends
    before = matmul.fp32_precision, everything.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        spectra.track(_model())
        assert matmul.fp32_precision == "tf32"
        matmul.fp32_precision, everything.fp32_precision = "none", "tf32"
        spectra.track(_model())
        everything.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"  # it still follows the setting of all
    finally:
        matmul.fp32_precision, everything.fp32_precision = before


def test_weights_sharded_by_fsdp2_are_refused_in_words(tmp_path: Path) -> None:
    from torch import distributed

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = _model()
        distributed.fsdp.fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(InvalidInputError, match=r"weight is sharded .*DTensor.* unsharded"):
            spectra.track(model)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("later", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_type_is_followed_in_the_type_of_the_start(
    later: torch.dtype,
) -> None:
    model = _model()
    tracker = spectra.track(model)
    model.to(later)
    tracker.step()
    assert tracker.history.frobenius_norm[-1].max() < (0.05 if later is torch.bfloat16 else 1e-12)


@pytest.mark.parametrize("size", [1e20, 1e-20])
def test_sizes_whose_products_leave_single_precision_are_measured(size: float) -> None:
    model, small = _model(), _model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(size)
    trackers = [spectra.track(m) for m in (model, small)]
    for m, tracker in zip((model, small), trackers, strict=True):
        with torch.no_grad():
            for parameter in m.parameters():
                parameter.mul_(1 + 100 * torch.linspace(0, 1, parameter.shape[-1]))
        if size > 1 and m is model:
            with pytest.raises(InvalidInputError, match=r"a product that overflows at step 1"):
                tracker.step()
        else:
            tracker.step()
    large, unit = (tracker.history for tracker in trackers)
    np.testing.assert_allclose(
        large.initial_singular_values, unit.initial_singular_values * size**2, rtol=1e-5
    )


def test_leaving_without_a_step_makes_the_last_record_and_says_that_no_step_was_counted() -> None:
    model = _model()
    with (
        pytest.warns(UncountedStepsWarning, match=r"after step 0, .* label 1\. Call step\(\)"),
        spectra.track(model) as tracker,
    ):
        _move(model)
    assert tracker.history.steps.tolist() == [0, 1]
    assert (tracker.history.frobenius_norm[-1] > 0).all()
    with spectra.track(model) as tracker:
        pass
    assert tracker.history.steps.tolist() == [0]


def test_the_trainer_s_callback_resumes_its_steps_and_its_start(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    sizes = {"n_embd": 12, "n_layer": 1, "n_head": 2, "vocab_size": 7, "n_positions": 8}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    data = [{"input_ids": row, "labels": row} for row in torch.arange(96).reshape(12, 8) ** 2 % 7]

    def train(folder: Path, steps: int, *, resume: bool = False) -> spectra.SpectraHistory:
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **still, **ends))
        callback = spectra.trainer_callback()
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, report_to=[],
            save_strategy="steps", save_steps=2, disable_tqdm=True, use_cpu=True,
            learning_rate=1e-2, lr_scheduler_type="constant", seed=1,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return callback.tracker.history

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    resumed = train(tmp_path / "parts", 4, resume=True)
    assert resumed.steps.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(resumed.singular_values, whole.singular_values, rtol=1e-5, atol=1e-7)
    for saved in (tmp_path / "parts").rglob("spectra.pt"):
        saved.unlink()
    late = train(tmp_path / "parts", 6, resume=True)
    assert late.steps.tolist() == [4, 5, 6]


@pytest.mark.parametrize("n_layers", [1, 4])
@pytest.mark.parametrize("spectrum", ["leading", "full"])
def test_a_record_waits_for_the_device_as_often_for_many_layers_as_for_one(
    n_layers: int, spectrum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    model = _model(n_layers, width=96, heads=1)
    tracker = spectra.track(model, n_values=2, n_directions=2, spectrum=spectrum)
    waits: list[str] = []

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            # What moves values to the host on a GPU: item, bool, nonzero and masks as indices.
            name = func.overloadpacket.__name__
            indices = args[1] if name in ("index", "index_put_") else ()
            if name in ("_local_scalar_dense", "nonzero", "masked_select") or any(
                i is not None and i.dtype == torch.bool for i in indices
            ):
                waits.append(name)
            return func(*args, **(kwargs or {}))

    numpy = Tensor.numpy
    monkeypatch.setattr(Tensor, "numpy", lambda self: (waits.append("numpy"), numpy(self))[1])
    for _ in range(2):
        _move(model)
        with Waits():
            tracker.step()
    # One table each time, and one more where values converged slowly.
    assert len(waits) <= 4, waits


@pytest.mark.parametrize("n_layers", [1, 3])
def test_a_record_on_a_device_is_one_copy_to_the_host_and_follows_the_model_there(
    n_layers: int,
) -> None:
    model, twin = _model(n_layers), _model(n_layers)
    early = spectra.track(model)
    with fake_device() as device:
        model.to("cuda")
        tracker = spectra.track(model)
        with torch.no_grad():
            for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
                move = 0.1 * torch.randn_like(other)
                other.add_(move)
                parameter.add_(move.to("cuda"))
        before = device.copies_to_host, device.waits
        tracker.step()
        assert (device.copies_to_host, device.waits) == (before[0] + 1, before[1])
        early.step()
        for other in (early, tracker):
            np.testing.assert_array_equal(
                other.history.frobenius_norm, tracker.history.frobenius_norm
            )
        assert (tracker.history.frobenius_norm[1] > 0).all()


def test_products_and_tracking_leave_no_trace_on_the_model() -> None:
    model: Any = _model(2)
    model.add_module("norm", nn.BatchNorm1d(4))
    model[0].dropout = nn.Dropout(0.5)
    model.train()
    calls: list[int] = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    model[1].q_proj.register_forward_pre_hook(lambda *_: calls.append(1))
    model[0].q_proj.weight.grad = torch.ones_like(model[0].q_proj.weight)
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    state = torch.get_rng_state()
    spectra.attention_products(model)
    spectra.track(model)
    assert torch.equal(state, torch.get_rng_state())
    assert not calls
    assert every(m.training for m in model.modules())
    assert attributes == [sorted(vars(m)) for m in model.modules()]
    assert versions == [p._version for p in model.parameters()]
    assert every(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"0.q_proj.weight"}
