"""Data for PyTorch models: arrays, tensors, data sets and loaders, as float64 tensors."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dynalyze._core.arrays import ArrayLike, Data
from dynalyze._core.collectives import every_rank, world
from dynalyze._core.pytorch import torch
from dynalyze.errors import InvalidInputError
from dynalyze.models.data import as_pair

_LOADER_BATCH = 256


def as_tensor(values: Any, name: str) -> torch.Tensor:
    """Copy of `values` on the CPU; floating point becomes float64, integers stay as they are.

    Raises
    ------
    InvalidInputError
        If it is not one array of finite numbers with a sample axis.
    """
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided:
            raise InvalidInputError(f"{name} is sparse: give {name}.to_dense()")
        tensor = values.detach().cpu()
    else:
        try:
            array = np.array(values)
        except ValueError as error:
            raise InvalidInputError(f"{name} is not a rectangular array: {error}") from error
        if array.dtype.kind not in "fiub":
            raise InvalidInputError(
                f"{name} is of type {type(values).__name__}: an array or tensor of numbers is "
                "needed"
            )
        # torch has neither long doubles nor another byte order, in which FITS and HDF5 may come.
        native = np.float64 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
        tensor = torch.from_numpy(array.astype(native, copy=False))
    if tensor.ndim == 0:
        raise InvalidInputError(
            f"{name} has no axis of samples, with shape (): its first axis must count them"
        )
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInputError(
                f"{name} contains NaN or infinity: remove or impute these samples"
            )
    return tensor.clone() if isinstance(values, torch.Tensor) else tensor


def gather(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """All samples of `data`: a pair (X, y), a torch Dataset, or a DataLoader of pairs.

    Returns
    -------
    tuple of Tensor
        X of shape (n_samples, ...) and y of shape (n_samples, ...), on the CPU.

    Raises
    ------
    InvalidInputError
        If there are no samples, numbers of samples differ, or batches are no pairs; in a torchrun
        job on every rank, also if the ranks do not read the same samples in the same order.
    """
    with every_rank() as stated:
        inputs, targets = _read(data)
        if world()[1] > 1:
            stated |= {"data X": fingerprint([inputs]), "data y": fingerprint([targets])}
    return inputs, targets


def refuse_other_order(data: Data, sample_weight: ArrayLike | None) -> None:
    """Refuse weights of samples that a loader yields in another order than its data set's."""
    if sample_weight is None:
        return
    utils = torch.utils.data
    if not isinstance(data, utils.DataLoader) or isinstance(data.dataset, utils.IterableDataset):
        return
    batches = data.batch_sampler
    plain = batches is None or type(batches) is utils.BatchSampler
    if not plain or not isinstance(data.sampler, utils.SequentialSampler):
        raise InvalidInputError(
            f"sample_weight was given with a DataLoader that draws its samples in an order of its "
            f"own ({type(data.sampler if plain else batches).__name__}), so that no weight can be "
            "matched to its sample: use shuffle=False, or give the data set itself"
        )


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Hash of shapes, types and contents of tensors: equal where every bit is."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        dense = tensor.detach().cpu() if tensor.layout == torch.strided else tensor.to_dense().cpu()
        content = dense.resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def fingerprint_besides(products: Iterable[tuple[str, str]], module: torch.nn.Module) -> str:
    """Hash of the parameters and buffers of a module that enter in none of the `products`."""
    trained = {name for pair in products for name in pair}
    held = module.state_dict().items()
    return fingerprint(value for name, value in held if name not in trained)


def _read(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(data, (tuple, list)) and len(data) == 2:
        given_X, given_y = as_pair(data)
        inputs, targets = as_tensor(given_X, "X"), as_tensor(given_y, "y")
    else:
        if isinstance(data, torch.utils.data.Dataset):
            data = torch.utils.data.DataLoader(data, batch_size=_LOADER_BATCH)
        if not isinstance(data, Iterable) or isinstance(data, (str, dict)):
            raise InvalidInputError(
                f"data is of type {type(data).__name__}: give a pair (X, y), a torch Dataset or a "
                "DataLoader whose batches are pairs"
            )
        batches = [_pair(batch) for batch in data]
        if not batches:
            raise InvalidInputError("data is empty: its loader yields no batch")
        inputs = as_tensor(torch.cat([x for x, _ in batches]), "X")
        targets = as_tensor(torch.cat([y for _, y in batches]), "y")
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise InvalidInputError(
            f"X has {len(inputs)} samples and y {len(targets)}: equal numbers, at least 1, are "
            "needed"
        )
    return inputs, targets


def _pair(batch: Any) -> Sequence[torch.Tensor]:
    if (
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and all(isinstance(part, torch.Tensor) for part in batch)
    ):
        return batch
    raise InvalidInputError(
        f"data yields batches of type {type(batch).__name__}: pairs of tensors (X, y) are needed"
    )
