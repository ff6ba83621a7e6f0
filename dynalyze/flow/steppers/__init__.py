"""Integrators of the flow, one per file; `protocol` says what one must do."""
