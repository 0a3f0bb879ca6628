"""The module that ``vitfast.accelerate`` returns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.acceleration_report import AccelerationReport, Agreement
from vitfast.inference.graphs.graph_cache import GraphCache
from vitfast.inference.input_adapters import HuggingFaceAdapter, ImageAdapter
from vitfast.inference.packed.packed_cascade import PackedCascade
from vitfast.inference.packed.packed_linear import PackedLinear
from vitfast.inference.packed.packed_transformer import PackedTransformer
from vitfast.models.exit_state import ExitState

_AGAIN = "call vitfast.accelerate on the source model again"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class AcceleratedModel(nn.Module):
    """A model that runs with packed weights, for inference on the CPU, or with cast ones on a GPU.

    It is called as its source and returns what its source returns. ``state_dict()`` has the source's keys; what is
    packed is unpacked for it, rounded as it is stored. It can be copied, pickled, compiled and exported; it cannot be
    trained, loaded into or moved.

    Args:
        body: runs.
        front: how it is called; None: the body is called as it is.
        state: the source's state dict, None where a tensor is packed in ``body``.
        report: what became of each part.
        graphs: runs the body by recordings; None: operator by operator.

    Attributes:
        device: where it lies.
    """

    is_accelerated = True

    def __init__(
        self,
        body: nn.Module,
        front: ImageAdapter | None,
        state: Mapping[str, Tensor | None],
        report: AccelerationReport,
        graphs: GraphCache | None = None,
    ) -> None:
        super().__init__()
        self.body: Any = body
        self._front = front
        self._state = dict(state)
        self._report = report
        self._graphs = graphs
        self.device = next((tensor.device for tensor in body.buffers()), torch.device("cpu"))
        if isinstance(front, HuggingFaceAdapter):  # transformers' pipelines ask a model for it
            self.config = front.config
        super().train(False)

    def report(self) -> AccelerationReport:
        """Returns what runs each part of the model, and why some keep their own forward."""
        return self._report

    def add_agreement(self, agreement: Agreement) -> None:
        """Puts into the report how well the model agrees with its source."""
        self._report = replace(self._report, agreement=agreement)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Does what the source's ``forward`` does.

        Raises:
            TypeError: the images are no tensor of floating-point numbers.
            ValueError: the images have another shape or lie on another device.
            UserError: options are given that only the source has.
        """
        if self._front is None:
            return self.body(*arguments, **options)
        images = self._checked(self._front.images_of(arguments, options))
        with self._autocast_off():
            return self._front.result_of(self._results(images), options)

    def _results(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the body makes of images, in float32."""
        if self._graphs is None or torch.compiler.is_compiling():
            outputs = self.body(images)
            return _as_float32(outputs) if isinstance(outputs, tuple) else outputs.to(torch.float32)

        def function(given: Tensor) -> tuple[Tensor, ...]:
            results = self.body(given)
            return _as_float32(results if isinstance(results, tuple) else (results,))

        results = self._graphs.run("forward", function, (images,))
        return results if self.body.returns_tuple else results[0]

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the final norm, ``[B, N, C]``, as ``forward_features`` of timm and vitfast.

        Raises:
            UserError: the model was not recognised as a whole, or has exits.
        """
        if not isinstance(self.body, PackedTransformer):
            raise UserError("this accelerated model has no tokens of its own to return; ask the source model")
        with self._autocast_off():
            return self.body.forward_features(self._checked(images)).to(torch.float32)

    def train(self, mode: bool = True) -> AcceleratedModel:
        """Refuses training mode.

        Raises:
            UserError: ``mode`` is True.
        """
        if mode:
            raise UserError(f"an accelerated model is for inference only; train the source model, then {_AGAIN}")
        return self

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Returns the source's keys with the values in use: what is packed is unpacked."""
        if args:  # the old form: destination, prefix, keep_vars
            destination, prefix = args[0], args[1] if len(args) > 1 else prefix
        destination = OrderedDict() if destination is None else destination
        unpacked = self._unpacked()
        for key, tensor in self._state.items():
            destination[prefix + key] = unpacked[key] if tensor is None else tensor.detach()
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
        return self  # not applied: float() would widen the weights that are stored in 16 bits

    def _checked(self, images: Any) -> Tensor:
        """Returns images in the body's type or uint8, if they are what the model takes."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor [B, channels, height, width], got {type(images).__name__}")
        self._check_type(images)
        if images.device != self.device:
            raise ValueError(f"images are on {images.device}, but the accelerated model is on {self.device}; move them")
        self.body.embedding.check(images)
        if images.dtype == torch.uint8:
            return images
        images = images.detach().to(self.body.embedding.image_dtype)
        return images if self.body.embedding.normalization is None else images * 255.0

    def _check_type(self, images: Tensor) -> None:
        if images.dtype in _FLOATS:
            return
        if self.body.embedding.normalization is None:
            raise TypeError(
                f"images must be float32, bfloat16 or float16, got {images.dtype}; convert and normalize them first, "
                "or let the model do it: vitfast.accelerate(…, mean=…, std=…)"
            )
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 (0 to 255) or floating point (0 to 1), got {images.dtype}")

    def _autocast_off(self) -> AbstractContextManager[Any]:
        """The precision of an accelerated model is its own, whatever autocast says."""
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

    def _unpacked(self) -> dict[str, Tensor]:
        rows: dict[str, list[tuple[int, Tensor]]] = {}
        for module in self.body.modules():
            if isinstance(module, PackedLinear):
                for place, values in module.source_rows():
                    for key in place.keys:
                        rows.setdefault(key, []).append((place.start, values))
        return {key: _joined(parts) for key, parts in rows.items()}


class AcceleratedCascade(AcceleratedModel):
    """An accelerated model with exits, which ``EarlyExit`` takes, too.

    Args:
        body: runs.
        front: how it is called.
        state: as in ``AcceleratedModel``.
        report: as in ``AcceleratedModel``.
        graphs: as in ``AcceleratedModel``.
        source: whose number of exits and sizes it has.
    """

    def __init__(
        self,
        body: PackedCascade,
        front: ImageAdapter,
        state: Mapping[str, Tensor | None],
        report: AccelerationReport,
        graphs: GraphCache | None,
        source: Any,
    ) -> None:
        super().__init__(body, front, state, report, graphs)
        self.model_name: str = source.model_name
        self.num_exits: int = source.num_exits
        self.num_classes: int = source.num_classes
        self.in_chans: int = source.in_chans
        self.img_size: int = source.img_size
        self.saved_exits = source.saved_exits

    @property
    def exits(self) -> nn.ModuleList:
        """What each exit computes beyond the one before."""
        return self.body.exits

    def start(self, images: Tensor) -> ExitState:
        """See ``vitfast.models.DVT.start``."""
        return ExitState(self._checked(images))

    def advance(self, state: ExitState) -> tuple[Tensor, ExitState]:
        """See ``vitfast.models.DVT.advance``."""
        with self._autocast_off():
            logits, after = self._advanced(state)
        return logits.to(torch.float32), after

    def _advanced(self, state: ExitState) -> tuple[Tensor, ExitState]:
        if self._graphs is None or torch.compiler.is_compiling() or state.next_exit >= self.num_exits:
            result: tuple[Tensor, ExitState] = self.body.advance(state)
            return result

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            logits, after = self.body.advance(_with_tensors(state, tensors))
            return logits, *_tensors_of(after)[1:]  # the images stay what they were

        logits, *reused = self._graphs.run(f"exit {state.next_exit}", function, _tensors_of(state))
        return logits, self.body.state_after(state, tuple(reused))


def _joined(parts: list[tuple[int, Tensor]]) -> Tensor:
    """Puts rows together that are packed in several places; a shared weight may be there more than once."""
    by_start = dict(parts)
    return torch.cat([by_start[start] for start in sorted(by_start)]) if len(by_start) > 1 else parts[0][1]


def _tensors_of(state: ExitState) -> tuple[Tensor, ...]:
    """What a state holds of each image; the images come first."""
    return state.images, *(() if state.features is None else (state.features,)), *state.relations


def _with_tensors(state: ExitState, tensors: tuple[Tensor, ...]) -> ExitState:
    """A state like another one, of the tensors that ``_tensors_of`` returns of it."""
    images, *reused = tensors
    features = None if state.features is None else reused.pop(0)
    return ExitState(images, state.next_exit, features, tuple(reused))


def _as_float32(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.to(torch.float32) for tensor in tensors)
