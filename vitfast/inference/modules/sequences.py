"""An accelerated Vision Transformer of patch sequences of different lengths (NaFlex, NaViT: Dehghani et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.backend import Backend
from vitfast.inference.ir import SequenceSpec
from vitfast.inference.modules.block import find_runs
from vitfast.inference.modules.linear import describe_gemms
from vitfast.inference.modules.position_bias import BiasTables
from vitfast.inference.modules.readout import InferenceReadout


class SequenceEmbedding(nn.Module):
    """Projects the patches of all images as rows of one matrix, adds positions and prepends the other tokens."""

    prefix: Tensor  # [T, C]

    def __init__(self, spec: SequenceSpec, backend: Backend) -> None:
        super().__init__()
        precision = spec.linear.precision or ("bf16" if backend.precision == "int8" else backend.precision)
        self.linear = backend.linear(replace(spec.linear, precision=precision))
        self.norm = backend.norm_or_identity(spec.patch_norm)
        self.pre_norm = backend.norm_or_identity(spec.pre_norm)
        prefix = [torch.empty(1, 0, spec.linear.out_features), *(token.detach().cpu() for token in spec.prefix)]
        self.register_buffer("prefix", torch.cat(prefix, dim=1)[0].to(backend.device, backend.dtype))
        for axis, one in enumerate(spec.positions):  # [1, C, G, g], or [1, C, G] and [1, C, g]
            positions = one.detach().to(backend.device, torch.float32).movedim(-1, 0)[None].contiguous()
            self.register_buffer(f"positions_{axis}", positions)
        self.num_positions = len(spec.positions)
        self.resize = spec.resize
        self.keeps_aspect = spec.keeps_aspect
        self.dtype = backend.dtype

    @property
    def path(self) -> str:
        """What runs it, for the report."""
        return describe_gemms(self.linear)

    def forward(self, patches: Tensor, valid: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Embeds ``patches`` ``[B, M, K]``; returns ``[T + n, C]`` per image. Arguments as in the whole model."""
        tokens = self.norm(self.linear(patches[valid].to(self.dtype)))
        if self.num_positions:
            resized = {grid: self._resized(grid) for grid in set(grids)}
            places = (one.nonzero()[:, 0] for one in valid)
            tokens = tokens + torch.cat([resized[grid][place] for grid, place in zip(grids, places, strict=True)])
        lengths = valid.sum(dim=1).tolist()
        sequences = tokens.split(lengths)
        prefixed = torch.cat([part for one in sequences for part in (self.prefix.to(one.dtype), one)])
        return list(self.pre_norm(prefixed).split([len(self.prefix) + length for length in lengths]))

    def _resized(self, grid: tuple[int, int]) -> Tensor:
        """Returns the positions ``[h * w, C]`` of a grid."""
        size = (max(grid), max(grid)) if self.keeps_aspect else grid
        tables = [getattr(self, f"positions_{axis}") for axis in range(self.num_positions)]
        if len(tables) == 1:
            positions = tables[0]
            if tuple(positions.shape[2:]) != size:
                positions = F.interpolate(positions, size=size, mode=self.resize, align_corners=False, antialias=True)
        else:
            rows, columns = (
                F.interpolate(table, size=length, mode="linear", align_corners=False)
                for table, length in zip(tables, size, strict=True)
            )
            positions = rows[..., None] + columns[..., None, :]
        resized: Tensor = positions[0, :, : grid[0], : grid[1]].flatten(1).t()
        return resized.to(self.dtype)


class InferenceSequences(nn.Module):
    """An accelerated Vision Transformer of sequences of patches; nothing is computed for their padding."""

    def __init__(self, spec: SequenceSpec, backend: Backend) -> None:
        super().__init__()
        self.embedding = SequenceEmbedding(spec, backend)
        self.blocks = nn.ModuleList(backend.block(one, in_windows=True) for one in spec.blocks)
        self.runs = find_runs(self.blocks)
        self.norm = backend.norm_or_identity(spec.norm)
        self.readouts = nn.ModuleList(InferenceReadout(one, backend) for one in spec.readouts)

    def forward(
        self,
        patches: Tensor,
        valid: Tensor,
        grids: Sequence[tuple[int, int]],
        hidden_states: list[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Runs the model.

        Args:
            patches: flattened patches ``[B, M, K]``.
            valid: which of them are not padding, ``[B, M]``, bool.
            grids: rows and columns of the patches of each image; ``valid`` selects among the first rows * columns.
            hidden_states: a list to which the tokens that enter the first block and those after each block are
                appended, ``[B, T + M, C]``, zero at the padding.

        Returns:
            The results of the readouts; all tokens are ``[B, T + M, C]``, zero at the padding.
        """
        sequences = self._tokens(patches, valid, grids, hidden_states)
        results: list[Tensor] = []
        for readout in self.readouts:
            if readout.pooling == "all":
                results.append(readout(self._padded(torch.cat(sequences), valid)))
            else:
                results.append(torch.cat([readout(one[None]) for one in sequences]))
        return tuple(results)

    def embed(self, patches: Tensor, valid: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor | None:
        """Computes the pooled features ``[B, C]``; None if the model pools none."""
        pooling: list[Any] = [one for one in self.readouts if one.pooling != "all"]
        sequences = self._tokens(patches, valid, grids, None)
        return torch.cat([pooling[0].embed(one[None]) for one in sequences]) if pooling else None

    def _tokens(
        self, patches: Tensor, valid: Tensor, grids: Sequence[tuple[int, int]], hidden_states: list[Tensor] | None
    ) -> list[Tensor]:
        """Computes the tokens of each image after the final norm."""
        sequences = self.embedding(patches, valid, grids)
        lengths = [len(one) for one in sequences]
        places = torch.arange(sum(lengths), device=patches.device).split(lengths)
        windows = nn.utils.rnn.pad_sequence(list(places), batch_first=True, padding_value=-1)
        tables = BiasTables(None, windows, None, torch.tensor(lengths, device=patches.device))
        tokens = torch.cat(sequences)[None]
        if hidden_states is not None:
            hidden_states.append(self._padded(tokens[0], valid))
        blocks = list(self.blocks)
        runs = self.runs if hidden_states is None else [range(index, index + 1) for index in range(len(blocks))]
        for run in runs:
            following = {"following": [(blocks[i], tables) for i in run[1:]]} if len(run) > 1 else {}
            tokens = blocks[run.start](tokens, tables, **following)
            if hidden_states is not None:
                hidden_states.append(self._padded(tokens[0], valid))
        return list(self.norm(tokens)[0].split(lengths))

    def _padded(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Places the tokens of all images in ``[B, T + M, C]``."""
        is_token = F.pad(valid, (len(self.embedding.prefix), 0), value=True)
        padded = tokens.new_zeros((*is_token.shape, tokens.shape[-1]))
        padded[is_token] = tokens
        return padded
