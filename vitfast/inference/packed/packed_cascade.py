"""A whole accelerated Dynamic Vision Transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from vitfast.inference.ir import CascadeSpec, ExitSpec, FallbackSpec
from vitfast.inference.packed.own_block import OwnBlock
from vitfast.inference.packed.packed_attention import upsampled
from vitfast.inference.packed.packed_embedding import PackedEmbedding
from vitfast.inference.packed.packed_readout import PackedReadout
from vitfast.inference.packed.packed_reuse_block import PackedRelationReuse, PackedReuseBlock
from vitfast.inference.packed.packer import Packer
from vitfast.models.dvt_exit import run_reuse_blocks
from vitfast.models.exit_state import ExitState


class PackedExit(nn.Module):
    """One transformer of the cascade.

    Args:
        described: the exit.
        packer: packs.
    """

    def __init__(self, described: ExitSpec, packer: Packer) -> None:
        super().__init__()
        transformer = described.transformer
        self.embedding = PackedEmbedding(transformer.embedding, packer)
        reuse = described.relation_reuse
        self.relation_reuse = None if reuse is None else PackedRelationReuse(reuse, packer)
        upsample = None if self.relation_reuse is None else self.relation_reuse.upsample
        self.blocks = nn.ModuleList(
            OwnBlock(block, packer) if isinstance(block, FallbackSpec) else PackedReuseBlock(block, packer, upsample)
            for block in transformer.blocks
        )
        self.norm = packer.optional_norm(transformer.norm)
        self.readout = PackedReadout(transformer.readouts[0], packer)

    def forward(
        self, images: Tensor, features: Tensor | None, relations: Sequence[Tensor], *, return_relations: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See ``vitfast.models.dvt_exit.DVTExit``."""
        x = self.embedding(images)
        biases = None if self.relation_reuse is None else self._biases(self.relation_reuse, relations)
        x, returned = run_reuse_blocks(self.blocks, x, features, biases, return_relations)
        return self.readout(self.norm(x[:, :1])), x, returned

    def _biases(self, reuse: PackedRelationReuse, relations: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields for each block what it takes: the source's own blocks take biases on the finer grid."""
        for block, coarse in zip(self.blocks, reuse(relations), strict=True):
            yield coarse if isinstance(block, PackedReuseBlock) else upsampled(coarse, reuse.upsample)


class PackedCascade(nn.Module):
    """Runs a ``Cascade`` of a description: all exits, or one after the other.

    Args:
        described: the model.
        packer: packs.
    """

    def __init__(self, described: CascadeSpec, packer: Packer) -> None:
        super().__init__()
        self.returns_tuple = True
        self.exits = nn.ModuleList(PackedExit(one, packer) for one in described.exits)
        self.feature_reuse = described.feature_reuse
        self.relation_reuse = described.relation_reuse

    @property
    def embedding(self) -> nn.Module:
        """That of the first exit."""
        found: nn.Module = self.exits[0].get_submodule("embedding")
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classifies ``images`` ``[B, in_chans, img_size, img_size]`` at every exit."""
        state = ExitState(images)
        results = []
        for _ in self.exits:
            logits, state = self.advance(state)
            results.append(logits)
        return tuple(results)

    def advance(self, state: ExitState) -> tuple[Tensor, ExitState]:
        """See ``vitfast.models.DVT``.

        Raises:
            ValueError: there is no exit left.
        """
        index = state.next_exit
        if index >= len(self.exits):
            raise ValueError(f"the model has {len(self.exits)} exits, and this state has passed them all")
        is_last = index == len(self.exits) - 1
        logits, features, relations = self.exits[index](
            state.images, state.features, state.relations, return_relations=self.relation_reuse and not is_last
        )
        reused = (features, *relations) if self.feature_reuse and not is_last else relations
        return logits, self.state_after(state, reused)

    def state_after(self, state: ExitState, reused: tuple[Tensor, ...]) -> ExitState:
        """Returns the state after the next exit.

        Args:
            state: the one before.
            reused: the exit's features, if the exit after it reads them, and its relations.
        """
        is_last = state.next_exit == len(self.exits) - 1
        features, relations = (reused[0], reused[1:]) if self.feature_reuse and not is_last else (None, reused)
        return ExitState(state.images, state.next_exit + 1, features, relations)
