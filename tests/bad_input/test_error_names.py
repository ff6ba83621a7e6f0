"""Every error and warning of the library can be caught by its name in the package."""

import inspect

import pytest

import dynalyze
from dynalyze import errors

NAMES = [name for name, _ in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_importable_from_the_package(name):
    assert getattr(dynalyze, name) is getattr(errors, name)
    assert name in dynalyze.__all__
