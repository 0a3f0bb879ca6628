"""The modules that ``vitfast.accelerate`` returns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.errors import UserError
from vitfast.inference.acceleration_report import AccelerationReport, Agreement
from vitfast.inference.image_tower import ImageTower
from vitfast.inference.ir_records import SpecRecord
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.modules.sequences import InferenceSequences
from vitfast.inference.modules.transformer import InferenceTransformer
from vitfast.inference.normalization import Normalization
from vitfast.models.dvt import ExitState
from vitfast.ops.library import is_onnx_export

_AGAIN = "call vitfast.accelerate on the source model again"


class AcceleratedModel(nn.Module):
    """An inference model with packed weights (CPU) or cast weights (GPU).

    It has the call signature and the outputs of its source. ``state_dict()`` has the source's keys; converted weights
    are restored, rounded as they are stored. The model can be copied, pickled, compiled and exported; it cannot be
    trained, loaded into or moved.

    Args:
        body: the modules that run, with the source's signature: an ``ImageTower``, or a copy of the source with
            accelerated parts.
        state: the source's state dict, with None for tensors that ``body`` holds converted.
        report: what runs each part.
        describe_kernels: as ``Backend.describe_kernels``; called on the machine that runs the model.
        attributes: of the source, from ``source_attributes``.
        spec_record: of the source, for ``vitfast.export``.

    Attributes:
        device: device of the model.
        dtype: of the images that it takes best and of its outputs: ``torch.float32`` in every precision.
        config, pretrained_cfg, default_cfg, num_classes, num_features, class_names: the source's, where it has them.
            The mean and standard deviation in ``pretrained_cfg`` are 0 and 1 if the model normalizes images itself.
    """

    is_accelerated = True
    normalization: Normalization | None = None  # which the model includes
    is_quantized = False  # whether layers have the precision of a quantized source

    def __init__(
        self,
        body: nn.Module,
        state: Mapping[str, Tensor | None],
        report: AccelerationReport,
        describe_kernels: Callable[[nn.Module, str], str],
        attributes: Mapping[str, Callable[[], Any]],
        spec_record: SpecRecord,
    ) -> None:
        super().__init__()
        self.body: Any = body
        self.spec_record = spec_record
        self._state = dict(state)
        self._report = report
        self.device = next((tensor.device for tensor in body.buffers()), torch.device("cpu"))
        self.dtype = torch.float32
        self._attributes = dict(attributes)
        self._describe_kernels = describe_kernels
        super().train(False)

    def __getattr__(self, name: str) -> Any:
        """Finds what describes the source, and in its copy methods such as CLIP's ``get_image_features``."""
        attributes = self.__dict__.get("_attributes", {})
        if name in attributes:
            return attributes[name]()
        try:
            return super().__getattr__(name)
        except AttributeError:
            body = self.__dict__.get("_modules", {}).get("body")
            if body is None or isinstance(body, ImageTower):
                raise
            return getattr(body, name)

    def report(self) -> AccelerationReport:
        """Returns what runs each part of the model here, and why some parts fall back to the source's forward."""
        return replace(self._report, kernels=self._describe_kernels(self.body, self.device.type))

    def add_agreement(self, agreement: Agreement) -> None:
        """Adds the agreement with the source to the report."""
        self._report = replace(self._report, agreement=agreement)

    def forward(self, images: Any = None, *arguments: Any, **options: Any) -> Any:
        """Runs the model; arguments and outputs are those of the source's ``forward``.

        The first argument has a name, so that ``dynamic_shapes=({0: batch},)`` of ``torch.export`` means it.

        Raises:
            TypeError: the images are not a tensor of a supported dtype.
            ValueError: the images have another shape or are on another device.
            UserError: an option is given that only the source supports, or ``torch.onnx.export`` calls it.
        """
        if is_onnx_export():
            raise UserError(
                "an accelerated model computes with operators of vitfast, which ONNX does not have; export the model "
                "that was accelerated"
            )
        if images is not None or arguments:
            arguments = (images, *arguments)
        return self.body(*arguments, **options)

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the final norm, as ``forward_features`` of timm and vitfast.

        Returns:
            ``[B, N, C]``; of a Swin Transformer ``[B, H, W, C]``, of SAM's encoder ``[B, C, H, W]``.

        Raises:
            UserError: the model has no recognised Vision Transformer as a whole or as its image tower, or has exits.
        """
        tower = self._tower()
        return _as_source(tower.model, images, tower.forward_features(images))

    def embed(self, images: Tensor, *, normalize: bool = False, **options: Any) -> Tensor:
        """Computes embeddings of images: the pooled features that enter the classifier, or CLIP's projection.

        Args:
            images: as in ``forward``; patches of SigLIP 2 and ``NaFlexVit``.
            normalize: whether to divide each embedding by its L2 norm.
            **options: what the source takes beside patches, such as ``spatial_shapes``.

        Returns:
            ``[B, C]``, float32.

        Raises:
            UserError: as in ``forward_features``, or the model pools no tokens.
        """
        tower = self._tower((InferenceTransformer, InferenceSequences))
        embedding = tower.embed(images, **options)
        if tower is not self.body and hasattr(self.body, "visual_projection"):
            embedding = self.body.visual_projection(embedding)
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Computes the patch tokens after some blocks, as ``forward_intermediates`` of timm.

        Of a Swin Transformer, stages take the place of blocks.

        Args:
            images: as in ``forward``.
            indices: of blocks; a number n: the last n blocks; None: all blocks.
            return_prefix_tokens: whether to return pairs of patch tokens and the tokens before them.
            norm: whether to apply the final norm to each; to the last stage only, where stages differ in size.
            output_fmt: ``"NCHW"`` for ``[B, C, H, W]``, ``"NLC"`` for ``[B, N, C]``.
            intermediates_only: whether to leave out the result of ``forward_features``.

        Returns:
            The result of ``forward_features``, and a list of the intermediate tokens; or only that list.

        Raises:
            UserError: an index is out of range, ``output_fmt`` is unknown, or as in ``forward_features``.
        """
        tower = self._tower()
        model = tower.model
        chosen = [model.stages[index] for index in _block_indices(indices, len(model.stages))]
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt={output_fmt!r} is not known; allowed: NCHW, NLC")
        states: list[Tensor] = []
        tokens = tower.forward_features(images, states)
        grids = model.grids(images)
        results: list[Any] = []
        for index in chosen:
            grid = grids[index]
            num_patches = grid[0] * grid[1]
            state = states[index]
            if norm and model.neck is not None:
                state = model.neck(state, grid)
            elif norm and (not model.merges or index == model.stages[-1]):
                state = model.norm(state)
            state = state.to(torch.float32)
            prefix, patches = state[:, :-num_patches], state[:, -num_patches:]
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            results.append((patches, prefix) if return_prefix_tokens and prefix.shape[1] else patches)
        return results if intermediates_only else (_as_source(model, images, tokens), results)

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Computes the patch tokens after some blocks, as ``get_intermediate_layers`` of DINOv2.

        Args:
            images: as in ``forward``.
            n: the number of last blocks, or indices of blocks.
            reshape: whether to return ``[B, C, H, W]`` rather than ``[B, N, C]``.
            return_class_token: whether to return pairs of patch tokens and the class token ``[B, C]``.
            norm: whether to apply the final norm to each.

        Raises:
            UserError: as in ``forward_intermediates``, or the model has no class token.
        """
        output_fmt: Literal["NCHW", "NLC"] = "NCHW" if reshape else "NLC"
        results = self.forward_intermediates(images, n, return_class_token, norm, output_fmt, intermediates_only=True)
        if not return_class_token:
            return tuple(results)
        if results and isinstance(results[0], Tensor):
            raise UserError("return_class_token=True, but the model has no class token; leave it out")
        return tuple((patches, prefix[:, 0]) for patches, prefix in results)

    def _tower(self, classes: tuple[type[nn.Module], ...] = (InferenceTransformer,)) -> ImageTower:
        """Returns the Vision Transformer that maps images to tokens, which must be of one of ``classes``."""
        towers = [module for module in self.body.modules() if isinstance(module, ImageTower)]
        if len(towers) != 1 or not isinstance(towers[0].model, classes):
            raise UserError(
                "this accelerated model cannot return its tokens: it was not recognised as a Vision Transformer with "
                "one output; call the source model for them"
            )
        return towers[0]

    def train(self, mode: bool = True) -> AcceleratedModel:
        """Refuses training mode.

        Raises:
            UserError: ``mode`` is True.
        """
        if mode:
            raise UserError(f"an accelerated model is for inference only; train the source model, then {_AGAIN}")
        return self

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Returns the source's keys with the values in use; converted weights are restored to float32."""
        if args:  # deprecated positional form: destination, prefix, keep_vars
            destination, prefix = args[0], args[1] if len(args) > 1 else prefix
        destination = OrderedDict() if destination is None else destination
        restored = self._restored()
        for key, tensor in self._state.items():
            destination[prefix + key] = restored[key] if tensor is None else tensor.detach()
        return destination

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Refuses weights.

        Raises:
            UserError: always.
        """
        raise UserError(f"an accelerated model takes no weights; load them into the source model, then {_AGAIN}")

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self.load_state_dict()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AcceleratedModel:
        probe = next(self.buffers(), torch.empty(0))[:0]
        changed = fn(probe) if probe.is_floating_point() else fn(torch.empty(0, device=probe.device))
        if changed.device != probe.device or changed.dtype != torch.float32:
            raise UserError(
                f"an accelerated model stays in its type and on its device; {_AGAIN}, with precision= or device="
            )
        return self  # not applied: float() would convert weights that are stored in 16 bits

    def _restored(self) -> dict[str, Tensor]:
        rows: dict[str, dict[int, Tensor]] = {}  # key -> first row -> rows; several layers may hold the same
        for module in self.body.modules():
            if isinstance(module, InferenceLinear):
                for place, values in module.source_rows():
                    for key in place.keys:
                        rows.setdefault(key, {})[place.start] = values
        return {key: torch.cat([parts[start] for start in sorted(parts)]) for key, parts in rows.items()}


class AcceleratedCascade(AcceleratedModel):
    """An accelerated model with exits, which ``EarlyExit`` supports.

    Args:
        *arguments: arguments of ``AcceleratedModel``.
        source: the DVT, whose sizes and exits are copied.
    """

    def __init__(self, *arguments: Any, source: Any) -> None:
        super().__init__(*arguments)
        self.model_name: str = source.model_name
        self.num_exits: int = source.num_exits
        self.num_classes: int = source.num_classes
        self.in_chans: int = source.in_chans
        self.img_size: int = source.img_size
        self.saved_exits = source.saved_exits

    @property
    def exits(self) -> nn.ModuleList:
        """The modules of the exits."""
        return self.body.model.exits

    def start(self, images: Tensor) -> ExitState:
        """As ``vitfast.models.DVT.start``."""
        return ExitState(self.body.checked(images))

    def advance(self, state: ExitState) -> tuple[Tensor, ExitState]:
        """As ``vitfast.models.DVT.advance``."""
        with self.body.autocast_off():
            logits, after = self._advanced(state)
        return logits.to(torch.float32), after

    def _advanced(self, state: ExitState) -> tuple[Tensor, ExitState]:
        cascade, graphs = self.body.model, self.body.graphs
        if graphs is None or torch.compiler.is_compiling() or state.next_exit >= self.num_exits:
            result: tuple[Tensor, ExitState] = cascade.advance(state)
            return result

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            logits, after = cascade.advance(_with_tensors(state, tensors))
            return logits, *_tensors_of(after)[1:]  # without the images, which do not change

        logits, *reused = graphs.run(f"exit {state.next_exit}", function, _tensors_of(state))
        passes_features = cascade.feature_reuse and state.next_exit < self.num_exits - 1
        features = reused.pop(0) if passes_features else None
        return logits, ExitState(state.images, state.next_exit + 1, features, tuple(reused))


def _as_source(model: InferenceTransformer, images: Tensor, tokens: Tensor) -> Tensor:
    """Gives the tokens after the final norm the shape that the source's ``forward_features`` returns."""
    if model.neck is None and not model.merges:
        return tokens
    as_grid = tokens.unflatten(1, model.grids(images)[-1])
    return as_grid if model.neck is None else as_grid.permute(0, 3, 1, 2).contiguous()


def _block_indices(indices: int | Sequence[int] | None, num_blocks: int) -> list[int]:
    """Returns the indices of blocks that ``forward_intermediates`` was asked for, counted from the first."""
    if indices is None:
        return list(range(num_blocks))
    if isinstance(indices, int):
        if not 0 < indices <= num_blocks:
            raise UserError(f"indices={indices} is out of range: the model has {num_blocks} blocks")
        return list(range(num_blocks - indices, num_blocks))
    outside = [index for index in indices if not -num_blocks <= index < num_blocks]
    if outside:
        raise UserError(f"indices={list(indices)}: {outside[0]} is out of range; the model has {num_blocks} blocks")
    return [index % num_blocks for index in indices]


def _tensors_of(state: ExitState) -> tuple[Tensor, ...]:
    """The tensors of a state; the images come first."""
    return state.images, *(() if state.features is None else (state.features,)), *state.relations


def _with_tensors(state: ExitState, tensors: tuple[Tensor, ...]) -> ExitState:
    """Replaces the tensors of a state, in the order of ``_tensors_of``."""
    images, *reused = tensors
    features = None if state.features is None else reused.pop(0)
    return ExitState(images, state.next_exit, features, tuple(reused))
