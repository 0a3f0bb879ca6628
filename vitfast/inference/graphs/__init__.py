"""Recorded computations: what runs a model without the host deciding about every operator again."""
