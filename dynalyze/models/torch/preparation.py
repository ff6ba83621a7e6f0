"""A PyTorch model checked on the data it is bound to."""

import numpy as np

from dynalyze._core.arrays import Data
from dynalyze._core.pytorch import torch
from dynalyze._core.warn import warn
from dynalyze.errors import DynalyzeError, InvalidInputError, NonSmoothWarning
from dynalyze.models.losses import squared_loss_factor
from dynalyze.models.torch.calculus import computing
from dynalyze.models.torch.data import gather
from dynalyze.models.torch.device import is_out_of_memory
from dynalyze.models.torch.inspection import some
from dynalyze.models.torch.loss import SampleLoss, check_loss, float_targets, squared_loss
from dynalyze.models.torch.network import ProductNetwork, loss_in
from dynalyze.models.torch.operations import Operations
from dynalyze.models.torch.probing import (
    check_derivatives,
    check_function,
    check_products_alone,
    probe_of,
)

_PROBE_SAMPLES = (6, 3, 1)  # where the device has no memory for more, fewer
_TOLERANCE = 1e-9


def prepared(
    network: ProductNetwork,
    data: Data,
    loss: str | SampleLoss,
    *,
    products_alone: bool,
    second: bool,
    known: tuple[str, ...],
) -> tuple[torch.Tensor, torch.Tensor, SampleLoss, tuple[str, ...]]:
    """Inputs and targets on the CPU, the loss, and what is not smooth, once all was checked.

    `TorchModel.bind` and `TorchModel.prepare` explain the parameters and what is raised. Modules
    that are `known` not to be smooth were named when the model was made; else operations are.
    """
    with computing(derivatives=True):
        inputs, targets = gather(data)
        given = loss_in(loss, torch.float64, network.device) if callable(loss) else loss
        for n_samples in _PROBE_SAMPLES:
            chosen = probe_of(len(inputs), n_samples)
            if n_samples == _PROBE_SAMPLES[0]:  # a token or a class beyond the range may be rare
                rare = _extremes(inputs) | _extremes(targets)
                chosen = torch.tensor(sorted(rare.union(chosen.tolist())))
            try:
                targets, used, kinks = _checked(
                    network, inputs, targets, given, chosen, products_alone, second
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                break
        else:
            raise DynalyzeError(
                f"{network.device} ran out of memory on one sample: free memory on the device, "
                "give another device=, or make the model smaller"
            )
    if kinks and not known:
        warn(
            f"the forward pass uses {some(kinks)}: not twice differentiable, which Definition 3.1 "
            "asks for; stages predicted may be wrong where its argument changes sign. Use GELU, "
            "SiLU or Softplus",
            NonSmoothWarning,
        )
    return inputs, targets, used, known or kinks


def _checked(
    network: ProductNetwork,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss: str | SampleLoss,
    chosen: torch.Tensor,
    products_alone: bool,
    second: bool,
) -> tuple[torch.Tensor, SampleLoss, tuple[str, ...]]:
    """Targets, loss and operations, once everything was checked on the `chosen` samples."""
    probe, wanted = (tensor[chosen].to(network.device) for tensor in (inputs, targets))
    rng = np.random.default_rng(0)  # any generic point serves
    theta = torch.from_numpy(rng.standard_normal(network.n_products)).to(network.device)
    operations = Operations(theta, network.given)
    trial = network.anew()  # so that a module that is refused leaves nothing in the model
    output = check_function(lambda x: trial.at(theta, lambda module: module(x)), probe, operations)
    _check_memory(trial, network.anew(), -theta, probe)
    if network.pairs and products_alone:
        check_products_alone(network, probe)
    if callable(loss):
        sample_loss = loss
        check_loss(sample_loss, output, wanted, operations)
    else:
        targets = float_targets(targets, output, len(inputs))
        wanted = wanted.to(torch.float64)
        sample_loss = squared_loss(squared_loss_factor(loss, output[0].numel()))
    if operations.outside:
        raise InvalidInputError(
            f"{some(sorted(operations.outside))}: read from the module that was given, and not "
            "from the copy in which θ is put, so that a part would not change with θ. A hook, a "
            "lambda or the loss holds the module: take weights from `self`, or from the module "
            "that a hook is passed"
        )
    check_derivatives(
        network, lambda module: sample_loss(module(probe), wanted).mean(), theta, second=second
    )
    return targets, sample_loss, tuple(sorted(operations.non_smooth))


def _extremes(tensor: torch.Tensor) -> set[int]:
    """Indices of the samples with the largest and with the smallest of all integers."""
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if not whole or tensor[0].numel() == 0:
        return set()
    flat = tensor.reshape(len(tensor), -1)
    return {int(flat.amax(1).argmax()), int(flat.amin(1).argmin())}


def _check_memory(
    used: ProductNetwork, fresh: ProductNetwork, theta: torch.Tensor, probe: torch.Tensor
) -> None:
    """Check that a network that was evaluated elsewhere gives the outputs of one that was not."""
    with torch.no_grad():
        after, alone = (network.at(theta, lambda f: f(probe)) for network in (used, fresh))
        near = torch.allclose(after, alone, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
    if not near:
        raise InvalidInputError(
            "the output at one θ depends on the θ before it: the module keeps what it computed (a "
            "cache of merged weights, a counter); switch that off, or compute it in every forward"
        )
