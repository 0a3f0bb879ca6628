"""What became of each part of a model when it was accelerated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerPath:
    """What runs one part of an accelerated model.

    Attributes:
        name: of the source's module; ``"(model)"`` for the model's own code.
        path: what runs it.
        why_not: why it keeps its own forward; empty where it does not.
    """

    name: str
    path: str
    why_not: str = ""


@dataclass(frozen=True)
class Agreement:
    """How well an accelerated model agrees with its source on some images.

    Attributes:
        num_images: how many there were.
        cosine: the smallest of their logits' cosines, over all results.
        top1_agreement: share of images with the same top class, 0 to 1, at the result where it is smallest.
        worst_layer: the block whose result, from the source's own input, is furthest from the source's.
        worst_error: its relative L2 distance.
    """

    num_images: int
    cosine: float
    top1_agreement: float
    worst_layer: str
    worst_error: float

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
        precision: of the products.
        kernels: the instruction set of the packed kernels; or why there are none.
        layers: every part.
        agreement: with the source, where images were given to check it; else None.
    """

    source: str
    precision: str
    kernels: str
    layers: tuple[LayerPath, ...]
    agreement: Agreement | None = None

    @property
    def fell_back(self) -> tuple[LayerPath, ...]:
        """The parts that keep their own forward."""
        return tuple(layer for layer in self.layers if layer.why_not)

    def __str__(self) -> str:
        name_width = max((len(layer.name) for layer in self.layers), default=0)
        path_width = max((len(layer.path) for layer in self.layers), default=0)
        lines = [f"{self.source}, {self.precision}, kernels: {self.kernels}"]
        lines += [
            f"  {layer.name.ljust(name_width)}  {layer.path.ljust(path_width)}  {layer.why_not}".rstrip()
            for layer in self.layers
        ]
        total, own = len(self.layers), len(self.fell_back)
        lines.append(f"{total - own} of {total} parts accelerated")
        return "\n".join(lines if self.agreement is None else [*lines, str(self.agreement)])
