"""Tests of vitfast.quantization."""
