"""The CPU backend: layers that call operators on packed weights."""
