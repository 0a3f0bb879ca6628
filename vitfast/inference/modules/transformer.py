"""A whole accelerated Vision Transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitfast.inference.ir import Combine
from vitfast.inference.modules.block import LastBlock
from vitfast.inference.modules.embedding import InferenceEmbedding
from vitfast.inference.modules.readout import InferenceReadout


class InferenceTransformer(nn.Module):
    """An accelerated Vision Transformer.

    Args:
        embedding: from images to tokens.
        blocks: in order.
        norm: applied to all tokens after the last block, or an identity.
        readouts: outputs.
        combine: as in ``TransformerSpec``.
        late_prefix: ``[1, T, C]``, inserted before block ``late_index``; or None.
        late_index: see ``late_prefix``.
    """

    late_prefix: Tensor | None

    def __init__(
        self,
        embedding: InferenceEmbedding,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        readouts: Sequence[InferenceReadout],
        combine: Combine,
        late_prefix: Tensor | None,
        late_index: int,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.readouts = nn.ModuleList(readouts)
        self.combine = combine
        self.returns_tuple = combine == "each"
        self.late_index = late_index
        self.register_buffer("late_prefix", late_prefix)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs the model on ``images`` ``[B, in_chans, H, W]``."""
        tokens = self.norm(self._through_blocks(self.embedding(images), all_tokens=False))
        results = tuple(readout(tokens) for readout in self.readouts)
        if self.combine == "each":
            return results
        if self.combine == "mean":
            return torch.stack(results).mean(0) if len(results) != 2 else (results[0] + results[1]) / 2
        return results[0]

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes all tokens after the final norm, ``[B, N, C]``."""
        out: Tensor = self.norm(self._through_blocks(self.embedding(images), all_tokens=True))
        return out

    def _through_blocks(self, tokens: Tensor, *, all_tokens: bool) -> Tensor:
        for index, block in enumerate(self.blocks):
            if self.late_prefix is not None and index == self.late_index:
                tokens = torch.cat([self.late_prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            if all_tokens and isinstance(block, LastBlock):
                tokens = block.first_tokens(tokens, tokens.shape[1])
            else:
                tokens = block(tokens)
        return tokens
