"""The report of ``accelerate``: what runs each part of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerPath:
    """What runs one part of an accelerated model."""

    name: str  # of the source module; "(model)" for the model's own code
    path: str  # what runs it
    why_not: str = ""  # why it falls back to the source's forward; empty if it does not


@dataclass(frozen=True)
class Agreement:
    """Agreement of an accelerated model with its source on some images."""

    num_images: int
    cosine: float  # smallest cosine similarity of the logits, over all outputs
    top1_agreement: float  # share of images with the same top class, 0 to 1; the smallest over all outputs
    worst_layer: str  # the block with the largest error, given the source's input to that block
    worst_error: float  # its relative L2 error

    def __str__(self) -> str:
        worst = f"; worst layer {self.worst_layer} ({self.worst_error:.1e})" if self.worst_layer else ""
        return (
            f"{self.num_images} images: cosine of logits at least {self.cosine:.6f}, "
            f"top-1 agreement {self.top1_agreement:.2%}{worst}"
        )


@dataclass(frozen=True)
class AccelerationReport:
    """What ``accelerate`` made of a model.

    Attributes:
        source: class of the source model.
        precision: precision of the GEMMs.
        kernels: which kernels run the model.
        layers: all parts.
        agreement: agreement with the source, if ``accelerate`` was given images to check it; else None.
    """

    source: str
    precision: str
    kernels: str
    layers: tuple[LayerPath, ...]
    agreement: Agreement | None = None

    @property
    def whole(self) -> bool:
        """Whether no part falls back to the source's forward."""
        return not self.fell_back

    @property
    def fell_back(self) -> tuple[LayerPath, ...]:
        """The parts that fall back to the source's forward."""
        return tuple(layer for layer in self.layers if layer.why_not)

    def __str__(self) -> str:
        name_width = max((len(layer.name) for layer in self.layers), default=0)
        path_width = max((len(layer.path) for layer in self.layers), default=0)
        lines = [f"{self.source}, {self.precision}, kernels: {self.kernels}"]
        lines += [
            f"  {layer.name.ljust(name_width)}  {layer.path.ljust(path_width)}  {layer.why_not}".rstrip()
            for layer in self.layers
        ]
        total = len(self.layers)
        lines.append(f"{total - len(self.fell_back)} of {total} parts accelerated")
        return "\n".join(lines if self.agreement is None else [*lines, str(self.agreement)])
