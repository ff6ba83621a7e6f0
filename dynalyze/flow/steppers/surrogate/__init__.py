"""The library's own integrator of the flow; docs/integrator.md derives it."""

from dynalyze.flow.steppers.surrogate.stepper import SurrogateStepper

__all__ = ["SurrogateStepper"]
