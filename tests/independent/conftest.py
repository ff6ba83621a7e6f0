"""Fixtures of the tests against independent implementations."""

import importlib.util
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def working_torchvision() -> Iterator[None]:
    """Let a torchvision built for CUDA be imported beside a torch built for the CPU.

    Its compiled operators do not load there; Python code that registers a description of them
    then fails on import. Naming two of them is enough, none is called.
    """
    if importlib.util.find_spec("torchvision") is None:
        yield
        return
    import torch

    library = None
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    del library
