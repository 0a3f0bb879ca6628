"""A whole accelerated Vision Transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitfast.inference.ir import BlockSpec, FallbackSpec, TransformerSpec
from vitfast.inference.packed.own_block import OwnBlock
from vitfast.inference.packed.packed_block import PackedBlock, PackedLastBlock
from vitfast.inference.packed.packed_embedding import PackedEmbedding
from vitfast.inference.packed.packed_readout import PackedReadout
from vitfast.inference.packed.packer import Packer


class PackedTransformer(nn.Module):
    """Runs a ``Transformer`` of a description.

    Args:
        described: the model.
        packer: packs.
    """

    late_prefix: Tensor

    def __init__(self, described: TransformerSpec, packer: Packer) -> None:
        super().__init__()
        self.embedding = PackedEmbedding(described.embedding, packer)
        readouts = [PackedReadout(one, packer) for one in described.readouts]
        self.combine = described.combine
        self.returns_tuple = described.combine == "each"
        self.blocks = nn.ModuleList(self._block(one, packer) for one in described.blocks[:-1])
        for last in described.blocks[-1:]:
            self.blocks.append(self._last_block(last, packer, readouts))
        self.norm = packer.optional_norm(described.norm)
        self.readouts = nn.ModuleList(readouts)
        late = [torch.empty(1, 0, self.embedding.prefix.shape[1]), *(t.detach().cpu() for t in described.late_prefix)]
        late_prefix = torch.cat(late, dim=1)  # [1, T, C]
        self.register_buffer("late_prefix", late_prefix.to(packer.device, packer.stream_dtype))
        self.late_index = described.late_index if described.late_prefix else -1

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs it on ``images`` ``[B, in_chans, H, W]``, float32."""
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
            if index == self.late_index:
                tokens = torch.cat([self.late_prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            if all_tokens and isinstance(block, PackedLastBlock):
                tokens = block.first_tokens(tokens, tokens.shape[1])
            else:
                tokens = block(tokens)
        return tokens

    def _block(self, described: BlockSpec | FallbackSpec, packer: Packer) -> nn.Module:
        if isinstance(described, FallbackSpec):
            return OwnBlock(described, packer)
        return PackedBlock(described, packer, self.embedding.patches.num_patches)

    def _last_block(
        self, described: BlockSpec | FallbackSpec, packer: Packer, readouts: Sequence[PackedReadout]
    ) -> nn.Module:
        read = [readout.tokens_read for readout in readouts]
        few = None if None in read else max(count for count in read if count is not None)
        if few is None or isinstance(described, FallbackSpec) or described.attention.gated is not None:
            return self._block(described, packer)
        return PackedLastBlock(described, packer, few)
