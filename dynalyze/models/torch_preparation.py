"""A PyTorch model checked on the data it is bound to."""

import numpy as np

from dynalyze._torch import torch
from dynalyze._typing import Data
from dynalyze._warn import warn
from dynalyze.errors import DynalyzeError, NonSmoothWarning
from dynalyze.models.losses import squared_loss_factor
from dynalyze.models.torch_calculus import computing
from dynalyze.models.torch_data import gather
from dynalyze.models.torch_device import is_out_of_memory
from dynalyze.models.torch_inspection import some
from dynalyze.models.torch_loss import SampleLoss, check_loss, float_targets, squared_loss
from dynalyze.models.torch_network import ProductNetwork, loss_in
from dynalyze.models.torch_operations import Operations
from dynalyze.models.torch_probing import (
    check_derivatives,
    check_function,
    check_products_alone,
    probe_of,
)

_PROBE_SAMPLES = (6, 3, 1)  # where the device has no memory for more, fewer


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
    operations = Operations(theta)
    output = check_function(
        lambda x: network.at(theta, lambda module: module(x)), probe, operations
    )
    if network.pairs and products_alone:
        check_products_alone(network, probe)
    if callable(loss):
        sample_loss = loss
        check_loss(sample_loss, output, wanted, operations)
    else:
        targets = float_targets(targets, output, len(inputs))
        wanted = wanted.to(torch.float64)
        sample_loss = squared_loss(squared_loss_factor(loss, output[0].numel()))
    check_derivatives(
        network, lambda module: sample_loss(module(probe), wanted).mean(), theta, second=second
    )
    return targets, sample_loss, tuple(sorted(operations.non_smooth))
