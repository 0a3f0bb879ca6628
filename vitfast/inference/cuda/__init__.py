"""The CUDA backend: layers with cast weights, and CUDA graphs."""
