"""A whole accelerated Vision Transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.backend import Backend
from vitfast.inference.ir import BlockSpec, FallbackSpec, MergeSpec, TransformerSpec
from vitfast.inference.modules.attention import FirstTokensAttention
from vitfast.inference.modules.block import PatchMerging, find_runs
from vitfast.inference.modules.embedding import InferenceEmbedding
from vitfast.inference.modules.linear import describe_gemms
from vitfast.inference.modules.position_bias import PositionBias
from vitfast.inference.modules.readout import InferenceReadout
from vitfast.inference.modules.rotary import RotaryEmbedding
from vitfast.inference.modules.token_merging import MergedTokens
from vitfast.layers.rotary import RotaryTables


class LastBlock(nn.Module):
    """The last block of a model whose head reads the first ``tokens`` tokens only.

    Keys and values are computed for all tokens; queries, output projection and MLP only for those that are read. With
    ``mlp_ratio`` 4 this saves five sixths of the block's GEMMs.
    """

    def __init__(self, spec: BlockSpec, tokens: int, backend: Backend) -> None:
        super().__init__()
        attention = spec.attention
        inner = attention.heads * attention.head_dim
        norm1 = backend.norm(spec.norm1)
        self.name = spec.name
        self.tokens = tokens
        self.q = backend.linear(attention.qkv, rows=slice(0, inner), norm=norm1)
        self.kv = backend.linear(attention.qkv, rows=slice(inner, 3 * inner), norm=norm1)
        q_norm, k_norm = backend.norm_or_identity(attention.q_norm), backend.norm_or_identity(attention.k_norm)
        heads = (attention.heads, attention.head_dim, attention.scale)
        self.attention = FirstTokensAttention(*heads, q_norm=q_norm, k_norm=k_norm)
        self.proj = backend.linear(attention.proj, scale=spec.scale1, norm=backend.optional_norm(attention.norm))
        self.mlp = backend.mlp(spec.norm2, spec.mlp, spec.scale2)
        self.dtype = backend.dtype

    @property
    def path(self) -> str:
        """What runs the block, for the report."""
        gemms = describe_gemms(self.q, self.kv, self.proj, self.mlp.fc1, self.mlp.fc2)
        return f"{gemms}, first {self.tokens} token{'s' if self.tokens > 1 else ''} only"

    def forward(
        self,
        x: Tensor,
        positions: RotaryTables | None = None,
        *,
        all_tokens: bool = False,
        merged: MergedTokens | None = None,
    ) -> Tensor:
        """Transforms ``x`` ``[B, N, C]``; returns the first tokens ``[B, tokens, C]``, or all; merges none."""
        x = x.to(self.dtype).contiguous()  # a fallback block may return any dtype and strides
        first = x if all_tokens else x[:, : self.tokens]
        key_bias = None if merged is None else merged.key_bias
        attended = self.attention(self.q(first), self.kv(x), positions, key_bias)
        first = self.proj(attended, first.contiguous())
        return self.mlp(first, first)


class InferenceTransformer(nn.Module):
    """An accelerated Vision Transformer.

    Attributes:
        merges: whether patches are merged between stages.
        stages: indices of the hidden states after each stage; without stages after each block.
        runs: ranges of blocks, each of which one call computes if no hidden states are asked for.
    """

    late_prefix: Tensor | None  # [1, T, C]

    def __init__(self, spec: TransformerSpec, backend: Backend) -> None:
        super().__init__()
        self.embedding = InferenceEmbedding(spec.embedding, backend)
        tokens = 1 + max(readout.index for readout in spec.readouts)
        reads_tokens = all(readout.pooling == "token" and readout.state == -1 for readout in spec.readouts)
        self.blocks = nn.ModuleList()
        self.positions = nn.ModuleDict()  # by the index of the block; several may share one
        grid = self.embedding.grid
        rotary = [RotaryEmbedding(one, grid, backend.device) for one in spec.rotary]
        biases: dict[tuple[Any, ...], PositionBias] = {}
        for index, one in enumerate(spec.blocks):
            if rotary:
                self.positions[str(index)] = rotary[index % len(rotary)]
            if isinstance(one, FallbackSpec):
                self.blocks.append(backend.fallback(one))
            elif isinstance(one, MergeSpec):
                self.blocks.append(backend.merging(one))
                grid = merged_grid(grid)
            elif one is spec.blocks[-1] and reads_tokens and _has_plain_attention(one):
                self.blocks.append(LastBlock(one, tokens, backend))
            elif spec.merge_tokens:
                self.blocks.append(backend.merging_block(one, spec.merge_tokens))
            else:
                self.blocks.append(backend.block(one, self.embedding.num_patches))
                bias, windows = one.attention.bias, one.attention.windows
                if bias is not None or windows is not None:
                    key = (bias, windows, grid)
                    if key not in biases:
                        biases[key] = PositionBias(bias, windows, one.attention.heads, grid, backend.device)
                    self.positions[str(index)] = biases[key]
        self.late_index = spec.late_index
        self.runs = find_runs(self.blocks, self.late_index)
        self.norm = backend.norm_or_identity(spec.norm)
        self.neck = None if spec.neck is None else backend.neck(spec.neck)
        self.readouts = nn.ModuleList(InferenceReadout(one, backend) for one in spec.readouts)
        self.merges_tokens = spec.merge_tokens > 0
        self.reads_tokens = reads_tokens
        self.reads_states = any(readout.state != -1 for readout in spec.readouts)
        self.takes_mean = spec.takes_mean
        self.merges = any(isinstance(one, MergeSpec) for one in spec.blocks)
        self.stages = spec.stages or tuple(range(1, 1 + len(spec.blocks)))
        late_prefix = [token.detach().to(backend.device, backend.dtype) for token in spec.late_prefix]
        self.register_buffer("late_prefix", torch.cat(late_prefix, dim=1) if late_prefix else None)

    def forward(self, images: Tensor, hidden_states: list[Tensor] | None = None) -> tuple[Tensor, ...]:
        """Runs the model on ``images`` ``[B, in_chans, H, W]``; ``hidden_states`` as in ``forward_features``."""
        if hidden_states is None and self.reads_states:
            hidden_states = []
        tokens = self.forward_features(images, all_tokens=hidden_states is not None, hidden_states=hidden_states)
        inputs: Any = (*(hidden_states or ()), tokens)
        grids = self.grids(images)
        states: list[Any] = [readout.state for readout in self.readouts]
        results = tuple(
            readout(inputs[state], grids[state]) for readout, state in zip(self.readouts, states, strict=True)
        )
        return ((results[0] + results[1]) / 2,) if self.takes_mean else results

    def embed(self, images: Tensor) -> Tensor:
        """Computes the pooled features before the classifier, ``[B, C]``, the mean of several.

        Raises:
            UserError: the model returns all tokens and pools none.
        """
        unpooled = ("all", "patches", "grid")
        pooling: list[Any] = [one for one in self.readouts if one.pooling not in unpooled and one.state == -1]
        if not pooling:
            raise UserError("the model pools no tokens, so it has no embedding; call forward_features instead")
        tokens = self.forward_features(images, all_tokens=False)
        return torch.stack([readout.embed(tokens) for readout in pooling]).mean(dim=0)

    def forward_features(
        self, images: Tensor, *, all_tokens: bool = True, hidden_states: list[Tensor] | None = None
    ) -> Tensor:
        """Computes all tokens after the final norm, ``[B, N, C]``, or at least those that the readouts read.

        Args:
            images: ``[B, in_chans, H, W]``.
            all_tokens: whether to compute all tokens.
            hidden_states: a list to which the tokens that enter the first block and those after each block are
                appended.
        """
        tokens = self.embedding(images)
        merged = MergedTokens(len(self.embedding.prefix)) if self.merges_tokens else None
        if hidden_states is not None:
            hidden_states.append(tokens)
        blocks: list[Any] = list(self.blocks)
        block_options = self.block_options(images)
        runs = self.runs if hidden_states is None else [range(index, index + 1) for index in range(len(blocks))]
        for run in runs:
            block, options = blocks[run.start], block_options[run.start]
            if self.late_prefix is not None and run.start == self.late_index:
                tokens = torch.cat([self.late_prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            if len(run) > 1:
                options["following"] = [(blocks[i], block_options[i].get("positions")) for i in run[1:]]
            if all_tokens and isinstance(block, LastBlock):
                options["all_tokens"] = True
            if merged is not None:
                options["merged"] = merged
            tokens = block(tokens, **options)
            if hidden_states is not None:
                hidden_states.append(tokens if merged is None else merged.spread(tokens))
        if merged is not None and (all_tokens or not self.reads_tokens):
            tokens = merged.spread(tokens)
        return self.norm(tokens) if self.neck is None else self.neck(tokens, self.grids(images)[-1])

    def block_options(self, images: Tensor) -> list[dict[str, Any]]:
        """Returns the arguments of each block that depend on the size of ``images``."""
        computed: dict[nn.Module, Any] = {}  # blocks that share positions have grids of one size
        options: list[dict[str, Any]] = []
        for index, (block, grid) in enumerate(zip(self.blocks, self.grids(images), strict=False)):
            options.append({"grid": grid} if isinstance(block, PatchMerging) else {})
            if str(index) in self.positions:
                module = self.positions[str(index)]
                if module not in computed:
                    computed[module] = module(grid)
                options[-1]["positions"] = computed[module]
        return options

    def grids(self, images: Tensor) -> list[tuple[int, int]]:
        """Returns the rows and columns of the patches in each hidden state."""
        grids = [self.grid(images)]
        for block in self.blocks:
            grids.append(merged_grid(grids[-1]) if isinstance(block, PatchMerging) else grids[-1])
        return grids

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Returns the rows and columns of the patches of ``images``."""
        # the number of patches counts only for embeddings that take images of one size
        grid: tuple[int, int] = self.embedding.patches.grid(images, self.embedding.num_patches)
        return grid


def merged_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns after ``PatchMerging``."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def _has_plain_attention(block: BlockSpec) -> bool:
    """Whether ``LastBlock`` can compute a block's attention."""
    attention = block.attention
    is_plain = attention.gated is None and attention.bias is None and attention.windows is None
    return is_plain and not (attention.has_joint_norms or block.is_post_norm or block.parallel)
