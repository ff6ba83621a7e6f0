"""The stand-in for a GPU refuses what a GPU refuses, and computes what the CPU computes."""

import numpy as np
import pytest
import torch
from fake_device import fake_device


@pytest.mark.parametrize(
    "use",
    [
        lambda there: there.numpy(),
        np.asarray,
        lambda there: there + torch.ones(2),
        lambda there: there @ torch.from_numpy(np.ones(2, dtype=np.float32)),
        lambda there: there[torch.tensor([0])],
        lambda there: torch.stack([there, there.cpu()]),
        lambda there: torch.vmap(lambda a: a * torch.ones(2))(there[None]),
        lambda there: torch.where(torch.tensor([True, False]), there, 0.0),
    ],
)
def test_tensors_on_the_device_are_not_used_on_the_cpu(use):
    with fake_device():
        there = torch.ones(2, device="cuda")
        with pytest.raises((TypeError, RuntimeError), match=r"device|expected"):
            use(there)


def test_moves_and_waits_are_counted():
    with fake_device() as device:
        there = torch.ones(2).to("cuda")
        assert there in device
        assert there.cpu() not in device
        assert (device.copies_to_device, device.copies_to_host, device.waits) == (1, 1, 0)
        assert float(there.sum()) == 2.0
        assert torch.equal(there, there)
        assert device.waits == 2
        np.testing.assert_array_equal(there.cpu().numpy(), [1, 1])


def test_modules_and_derivatives_stay_on_the_device():
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    x = torch.randn(4, 3)
    expected = torch.autograd.functional.hessian(lambda x: module(x).tanh().sum(), x)
    with fake_device() as device:
        module.to(device="cuda")
        there = x.to("cuda").requires_grad_()
        (gradient,) = torch.autograd.grad(module(there).tanh().sum(), there, create_graph=True)
        assert gradient in device
        row = torch.autograd.grad(gradient[1, 2], there)[0]
        assert row in device
        assert row.device == torch.device("cuda", 0)
        np.testing.assert_allclose(row.cpu().numpy(), expected[1, 2].detach().numpy(), atol=1e-7)
        assert module.to("cpu").weight not in device
    assert not torch.ones(2).is_cuda
