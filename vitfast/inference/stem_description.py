"""How images become tokens where it takes more than one product: two parts of ``description``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from vitfast.inference.description import Linear, Mlp, Norm


@dataclass(frozen=True, eq=False)
class Split:
    """Overlapping patches of an image or of a grid of tokens."""

    patch_size: int
    stride: int
    padding: int


@dataclass(frozen=True, eq=False)
class TokenMixer:
    """An attention layer of the tokens-to-token module: softmax attention with one head, or a performer.

    Attributes:
        norm1: before the attention.
        linear: q, k, v in this order; k, q, v of a performer.
        projection: random features ``[M, D]`` of a performer; None: softmax attention.
        scale: of the logits of softmax attention.
        proj: of the attention's result.
        norm2: before the MLP.
        mlp: the MLP.
    """

    norm1: Norm
    linear: Linear
    projection: Tensor | None
    scale: float
    proj: Linear
    norm2: Norm
    mlp: Mlp


@dataclass(frozen=True, eq=False)
class TokensToToken:
    """Overlapping patches in three steps (Yuan et al., 2021).

    Attributes:
        splits: three.
        mixers: two, one after each of the first two splits.
        project: after the last split.
        image_size: height and width that the model takes.
        in_chans: channels of an image.
    """

    splits: tuple[Split, Split, Split]
    mixers: tuple[TokenMixer, TokenMixer]
    project: Linear
    image_size: tuple[int, int]
    in_chans: int


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution, BatchNorm as it is in evaluation, ReLU.

    Attributes:
        weight: ``[O, I, height, width]``.
        bias: ``[O]`` or None.
        stride: of both directions.
        padding: zeros on each side.
        batch_norm: scale and shift ``[O]`` after the convolution, its running mean and variance, and its epsilon; or
            None.
        relu: whether ReLU follows.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int
    batch_norm: tuple[Tensor, Tensor, Tensor, Tensor, float] | None
    relu: bool


@dataclass(frozen=True, eq=False)
class ConvStem:
    """Tokens from a few convolutions.

    Attributes:
        convolutions: in order; the last one's channels are the tokens'.
        image_size: height and width that the model takes.
        in_chans: channels of an image.
    """

    convolutions: tuple[Convolution, ...]
    image_size: tuple[int, int]
    in_chans: int
