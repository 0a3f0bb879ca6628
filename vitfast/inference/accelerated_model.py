"""The modules that ``vitfast.accelerate`` returns."""

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
from vitfast.inference.cuda.graph_cache import GraphCache
from vitfast.inference.input_adapters import HuggingFaceAdapter, ImageAdapter
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.modules.transformer import InferenceTransformer
from vitfast.models.dvt import ExitState

_AGAIN = "call vitfast.accelerate on the source model again"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class AcceleratedModel(nn.Module):
    """An inference model with packed weights (CPU) or cast weights (GPU).

    It has the call signature and the outputs of its source. ``state_dict()`` has the source's keys; converted weights
    are restored, rounded as they are stored. The model can be copied, pickled, compiled and exported; it cannot be
    trained, loaded into or moved.

    Args:
        body: the modules that run.
        adapter: converts arguments and outputs; None: the body has the source's signature.
        state: the source's state dict, with None for tensors that ``body`` holds converted.
        report: what runs each part.
        graphs: runs the body by recordings; None: operator by operator.

    Attributes:
        device: device of the model.
    """

    is_accelerated = True

    def __init__(
        self,
        body: nn.Module,
        adapter: ImageAdapter | None,
        state: Mapping[str, Tensor | None],
        report: AccelerationReport,
        graphs: GraphCache | None = None,
    ) -> None:
        super().__init__()
        self.body: Any = body
        self._adapter = adapter
        self._state = dict(state)
        self._report = report
        self._graphs = graphs
        self.device = next((tensor.device for tensor in body.buffers()), torch.device("cpu"))
        if isinstance(adapter, HuggingFaceAdapter):  # transformers' pipelines read it
            self.config = adapter.config
        super().train(False)

    def report(self) -> AccelerationReport:
        """Returns what runs each part of the model, and why some parts fall back to the source's forward."""
        return self._report

    def add_agreement(self, agreement: Agreement) -> None:
        """Adds the agreement with the source to the report."""
        self._report = replace(self._report, agreement=agreement)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Runs the model; arguments and outputs are those of the source's ``forward``.

        Raises:
            TypeError: the images are not a tensor of a supported dtype.
            ValueError: the images have another shape or are on another device.
            UserError: an option is given that only the source supports.
        """
        if self._adapter is None:
            return self.body(*arguments, **options)
        images = self._checked(self._adapter.images_of(arguments, options))
        with self._autocast_off():
            return self._adapter.result_of(self._results(images), options)

    def _results(self, images: Tensor) -> tuple[Tensor, ...]:
        """Runs the body; returns float32."""

        def function(given: Tensor) -> tuple[Tensor, ...]:
            return tuple(result.to(torch.float32) for result in self.body(given))

        if self._graphs is None or torch.compiler.is_compiling():
            return function(images)
        return self._graphs.run("forward", function, (images,))

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the final norm, ``[B, N, C]``, as ``forward_features`` of timm and vitfast.

        Raises:
            UserError: the model was not recognised as a whole, or has exits.
        """
        if not isinstance(self.body, InferenceTransformer):
            raise UserError(
                "this accelerated model cannot return its tokens; call forward_features of the source model"
            )
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

    def _checked(self, images: Any) -> Tensor:
        """Checks images; returns them in the body's dtype or uint8."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor [B, channels, height, width], got {type(images).__name__}")
        takes_pixels = self.body.embedding.normalization is not None
        if images.dtype not in _FLOATS and not takes_pixels:
            raise TypeError(
                f"images must be float32, bfloat16 or float16, got {images.dtype}; convert and normalize them first, "
                "or let the model do it: vitfast.accelerate(…, mean=…, std=…)"
            )
        if images.dtype not in (*_FLOATS, torch.uint8):
            raise TypeError(f"images must be uint8 (0 to 255) or floating point (0 to 1), got {images.dtype}")
        if images.device != self.device:
            raise ValueError(f"images are on {images.device}, but the accelerated model is on {self.device}; move them")
        self.body.embedding.check(images)
        if images.dtype == torch.uint8:
            return images
        images = images.detach().to(self.body.embedding.image_dtype)
        return images * 255.0 if takes_pixels else images

    def _autocast_off(self) -> AbstractContextManager[Any]:
        """Disables autocast, which must not change the model's precision."""
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

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
        return self.body.exits

    def start(self, images: Tensor) -> ExitState:
        """As ``vitfast.models.DVT.start``."""
        return ExitState(self._checked(images))

    def advance(self, state: ExitState) -> tuple[Tensor, ExitState]:
        """As ``vitfast.models.DVT.advance``."""
        with self._autocast_off():
            logits, after = self._advanced(state)
        return logits.to(torch.float32), after

    def _advanced(self, state: ExitState) -> tuple[Tensor, ExitState]:
        if self._graphs is None or torch.compiler.is_compiling() or state.next_exit >= self.num_exits:
            result: tuple[Tensor, ExitState] = self.body.advance(state)
            return result

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            logits, after = self.body.advance(_with_tensors(state, tensors))
            return logits, *_tensors_of(after)[1:]  # without the images, which do not change

        logits, *reused = self._graphs.run(f"exit {state.next_exit}", function, _tensors_of(state))
        passes_features = self.body.feature_reuse and state.next_exit < self.num_exits - 1
        features = reused.pop(0) if passes_features else None
        return logits, ExitState(state.images, state.next_exit + 1, features, tuple(reused))


def _tensors_of(state: ExitState) -> tuple[Tensor, ...]:
    """The tensors of a state; the images come first."""
    return state.images, *(() if state.features is None else (state.features,)), *state.relations


def _with_tensors(state: ExitState, tensors: tuple[Tensor, ...]) -> ExitState:
    """Replaces the tensors of a state, in the order of ``_tensors_of``."""
    images, *reused = tensors
    features = None if state.features is None else reused.pop(0)
    return ExitState(images, state.next_exit, features, tuple(reused))
