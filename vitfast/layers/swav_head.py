"""The head of SwAV: a projection to unit vectors and prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from vitfast.errors import UserError
from vitfast.layers.mlp_head import MlpHead


class SwavHead(nn.Module):
    """Projection, L2 normalization, prototypes (Caron et al., 2020): vissl's ``swav_head``, with its parameter names.

    The projection is (Linear, BatchNorm, activation)*, Linear. The prototypes are linear layers without bias; their
    outputs, the scores, are cosines if the embeddings and the rows of the prototypes have length 1.

    Args:
        dims: widths of the projection, from the channels of the features to the embedding's.
        num_clusters: number of prototypes of each layer; ``[3000]`` in vissl, empty for distillation.
        use_bn: whether BatchNorm follows a linear layer.
        use_bias: whether the linear layers of the projection have biases.
        return_embeddings: whether ``forward`` also returns the embeddings.
        skip_last_bn: whether neither BatchNorm nor activation follows the last linear layer.
        normalize_feats: whether the embeddings are divided by their length.
        activation: ``"relu"`` or ``"gelu"``.
        use_weight_norm_prototypes: whether length and direction of the prototypes are separate parameters (Salimans &
            Kingma, 2016), with initial lengths of 1.

    Raises:
        UserError: widths or numbers are out of range, or nothing would be returned.
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_clusters: Sequence[int],
        *,
        use_bn: bool = True,
        use_bias: bool = True,
        return_embeddings: bool = True,
        skip_last_bn: bool = True,
        normalize_feats: bool = True,
        activation: Literal["relu", "gelu"] = "relu",
        use_weight_norm_prototypes: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ("relu", "gelu"):
            raise UserError(f"activation must be 'relu' or 'gelu'; got {activation!r}")
        if any(count < 1 for count in num_clusters):
            raise UserError(f"num_clusters must list numbers of at least 1, for example [3000]; got {num_clusters!r}")
        if not num_clusters and not return_embeddings:
            raise UserError("num_clusters=[] leaves nothing to return with return_embeddings=False; set it to True")
        self.projection_head = MlpHead(
            dims,
            use_bn=use_bn,
            use_relu=True,
            use_bias=use_bias,
            skip_last_layer_relu_bn=skip_last_bn,
            activation=nn.ReLU if activation == "relu" else nn.GELU,
        ).clf
        self.num_prototype_layers = len(num_clusters)
        for index, count in enumerate(num_clusters):
            prototypes = nn.Linear(dims[-1], count, bias=False)
            self.add_module(f"prototypes{index}", _normed(prototypes) if use_weight_norm_prototypes else prototypes)
        self.return_embeddings = return_embeddings
        self.normalize_feats = normalize_feats

    def forward(self, features: Tensor) -> list[Tensor]:
        """Embeds a model's pooled channels ``[B, dims[0]]`` and compares them with the prototypes.

        Returns:
            The embeddings ``[B, dims[-1]]`` if ``return_embeddings``, then the scores ``[B, num_clusters[i]]`` of each
            layer of prototypes.
        """
        embeddings: Tensor = self.projection_head(features)
        if self.normalize_feats:
            # the sum of squares and the epsilon 1e-12 are beyond the range of float16
            precise = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            embeddings = F.normalize(precise, dim=1).to(embeddings.dtype)
        scores = [self.get_submodule(f"prototypes{index}")(embeddings) for index in range(self.num_prototype_layers)]
        return [embeddings, *scores] if self.return_embeddings else scores


def _normed(prototypes: nn.Linear) -> nn.Linear:
    """Splits the weight into lengths of 1 and directions; also loads vissl's ``weight_g`` and ``weight_v``."""
    normed: nn.Linear = weight_norm(prototypes)
    nn.init.ones_(normed.parametrizations.weight.original0)  # type: ignore[union-attr, arg-type]
    return normed
