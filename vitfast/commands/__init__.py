"""Commands of ``python -m vitfast.<command>``."""
