"""Modules that accelerated models consist of, common to all backends."""
