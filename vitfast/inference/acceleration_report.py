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
    cosine: float  # smallest cosine similarity of the outputs of an image, over all images and outputs
    top1_agreement: float  # share of images with the same top class, 0 to 1; the smallest over all outputs
    max_difference: float  # largest absolute difference of an element of the outputs
    worst_layer: str  # the block with the largest error, given the source's input to that block
    worst_error: float  # its relative L2 error

    def __str__(self) -> str:
        worst = (
            f"; layer with the largest error {self.worst_layer}, relative L2 error of its output {self.worst_error:.1e}"
            if self.worst_layer
            else ""
        )
        return (
            f"agreement with the source on {self.num_images:,} images: same top class for {self.top1_agreement:.2%}, "
            f"cosine similarity of the outputs at least {self.cosine:.6f}, largest difference of an output "
            f"{self.max_difference:.1e}{worst}"
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
