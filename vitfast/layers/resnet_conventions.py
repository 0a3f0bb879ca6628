"""What published ResNets in front of a ViT disagree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ResNetPadding = Literal["same", "symmetric"]
WeightEpsPlace = Literal["deviation", "variance"]
ProjectionNorm = Literal["group", "channel"]


@dataclass(frozen=True)
class ResNetConventions:
    """The details that differ between systems; the defaults are Google's.

    ================  ===============  ===============  ===============
    field             Google (JAX)     timm             ViT-pytorch
    ================  ===============  ===============  ===============
    padding           ``same``         ``same``         ``symmetric``
    weight_eps        1e-5             1e-8             1e-5
    weight_eps_place  ``deviation``    ``variance``     ``variance``
    group_norm_eps    1e-6             1e-5             1e-6
    projection_norm   ``group``        ``group``        ``channel``
    ================  ===============  ===============  ===============

    Attributes:
        padding: ``"same"``, see ``pad_same``; or ``"symmetric"``: half a kernel on each side of a convolution, and none
            around the pooling of the stem.
        weight_eps: guards the standardization of kernels against a division by zero.
        weight_eps_place: whether it is added to the standard ``"deviation"``, or under the root, to the ``"variance"``.
        group_norm_eps: epsilon of the GroupNorms.
        projection_norm: the norm of a shortcut's projection: ``"group"`` as all others, or ``"channel"``: every channel
            for itself, with an epsilon of 1e-5.
    """

    padding: ResNetPadding = "same"
    weight_eps: float = 1e-5
    weight_eps_place: WeightEpsPlace = "deviation"
    group_norm_eps: float = 1e-6
    projection_norm: ProjectionNorm = "group"
