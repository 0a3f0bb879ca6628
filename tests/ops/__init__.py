"""Tests of vitfast.ops."""
