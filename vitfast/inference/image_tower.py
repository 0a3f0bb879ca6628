"""A Vision Transformer run by accelerated modules: a whole model, or the image tower of a larger one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.inference.cuda.graph_cache import GraphCache
from vitfast.inference.input_adapters import ImageAdapter

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class ImageTower(nn.Module):
    """Has the call signature and the outputs of the source module that it replaces.

    Args:
        name: name of the module in the source; empty for the source itself.
        model: the modules that run.
        adapter: converts arguments and outputs.
        graphs: runs the model by recordings; None: operator by operator.

    Attributes:
        device: device of the model.
    """

    def __init__(self, name: str, model: nn.Module, adapter: ImageAdapter, graphs: GraphCache | None = None) -> None:
        super().__init__()
        self.name = name
        self.model: Any = model
        self.adapter = adapter
        self.graphs = graphs
        self.device = next((tensor.device for tensor in model.buffers()), torch.device("cpu"))

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Runs the model; arguments and outputs are those of the source's ``forward``.

        Raises:
            TypeError: the images are not a tensor of a supported dtype.
            ValueError: the images have another shape or are on another device.
            UserError: an option is given that only the source supports.
        """
        images = self.checked(self.adapter.images_of(arguments, options))
        hidden_states: list[Tensor] | None = [] if self.adapter.hidden_states_of(options) else None
        with self.autocast_off():
            results = self._results(images, hidden_states)
            grids = [] if hidden_states is None else self.model.grids(images)
            return self.adapter.result_of(results, options, hidden_states, grids)

    def forward_features(self, images: Tensor, hidden_states: list[Tensor] | None = None) -> Tensor:
        """As ``InferenceTransformer.forward_features``, with checks and in float32."""
        with self.autocast_off():
            tokens: Tensor = self.model.forward_features(self.checked(images), hidden_states=hidden_states)
        return tokens.to(torch.float32)

    def embed(self, images: Tensor, **options: Any) -> Tensor:
        """As ``InferenceTransformer.embed``, with checks and in float32."""
        images = self.adapter.images_of((images,), options)
        with self.autocast_off():
            embedding: Tensor = self.model.embed(self.checked(images))
        return embedding.to(torch.float32)

    def checked(self, images: Any) -> Tensor:
        """Checks images; returns them in the model's dtype or uint8."""
        embedding = self.model.embedding
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor [B, channels, height, width], got {type(images).__name__}")
        takes_pixels = embedding.normalization is not None
        if images.dtype == torch.float64:
            raise TypeError("images must be float32, bfloat16 or float16, got torch.float64; give images.float()")
        if images.dtype not in _FLOATS and not takes_pixels:
            raise TypeError(
                f"images must be float32, bfloat16 or float16, got {images.dtype}; convert and normalize them first, "
                "or let the model do it: vitfast.accelerate(…, mean=…, std=…)"
            )
        if images.dtype not in (*_FLOATS, torch.uint8):
            raise TypeError(f"images must be uint8 (0 to 255) or floating point (0 to 1), got {images.dtype}")
        if images.device != self.device:
            raise ValueError(f"images are on {images.device}, but the accelerated model is on {self.device}; move them")
        embedding.check(images)
        if images.dtype == torch.uint8:
            return images
        images = images.detach().to(embedding.image_dtype)
        return images * 255.0 if takes_pixels else images

    def autocast_off(self) -> AbstractContextManager[Any]:
        """Disables autocast, which must not change the model's precision."""
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

    def _results(self, images: Tensor, hidden_states: list[Tensor] | None) -> tuple[Tensor, ...]:
        """Runs the model; returns float32."""
        if hidden_states is not None:
            results = self.model(images, hidden_states)
            hidden_states[:] = [state.to(torch.float32) for state in hidden_states]
            return tuple(result.to(torch.float32) for result in results)

        def function(given: Tensor) -> tuple[Tensor, ...]:
            return tuple(result.to(torch.float32) for result in self.model(given))

        if self.graphs is None or torch.compiler.is_compiling():
            return function(images)
        return self.graphs.run(f"{self.name} forward", function, (images,))
