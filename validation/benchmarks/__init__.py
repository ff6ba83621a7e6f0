"""The library's speed beside that of the alternatives, run by ``make bench``."""
