"""What a block takes from the features of the exit before."""

from __future__ import annotations

from torch import Tensor, nn

from vitfast.layers.grid_upsample import GridUpsample
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp
from vitfast.layers.stored_result import StoredFeatures


class FeatureReuse(nn.Module):
    """Condenses the features of the previous exit and brings them to a finer grid (Wang et al., 2021).

    Args:
        dim: channels C of the features.
        hidden_dim: hidden width of the MLP.
        out_dim: channels that come out.
        upsample: between the grids of the two exits; all blocks of an exit may share it.
        layer_norm_eps: epsilon of the LayerNorm.
        drop_rate: dropout within the MLP.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        out_dim: int,
        upsample: GridUpsample,
        *,
        layer_norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.norm = LayerNorm(dim, layer_norm_eps)
        self.mlp = Mlp(dim, hidden_dim, out_dim=out_dim, drop_rate=drop_rate)
        self.upsample = upsample
        self.result = StoredFeatures()

    def forward(self, features: Tensor) -> Tensor:
        """Turns features ``[B, 1 + g * g, C]`` into ``[B, 1 + G * G, out_dim]``; the class token's are zero."""
        return self.result(self.upsample.features(self.mlp(self.norm(features))))
