"""The modules that ``vitfast.accelerate`` returns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.acceleration_report import AccelerationReport, Agreement
from vitfast.inference.image_tower import ImageTower
from vitfast.inference.modules.linear import InferenceLinear
from vitfast.inference.modules.transformer import InferenceTransformer
from vitfast.models.dvt import ExitState

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

    Attributes:
        device: device of the model.
    """

    is_accelerated = True

    def __init__(
        self,
        body: nn.Module,
        state: Mapping[str, Tensor | None],
        report: AccelerationReport,
    ) -> None:
        super().__init__()
        self.body: Any = body
        self._state = dict(state)
        self._report = report
        self.device = next((tensor.device for tensor in body.buffers()), torch.device("cpu"))
        config = getattr(body.adapter if isinstance(body, ImageTower) else body, "config", None)
        if config is not None:  # transformers' pipelines read it
            self.config = config
        super().train(False)

    def __getattr__(self, name: str) -> Any:
        """Finds methods of the source, such as CLIP's ``get_image_features``, in its copy."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            body = self.__dict__.get("_modules", {}).get("body")
            if body is None or isinstance(body, ImageTower):
                raise
            return getattr(body, name)

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
        return self.body(*arguments, **options)

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the final norm, ``[B, N, C]``, as ``forward_features`` of timm and vitfast.

        Raises:
            UserError: the model was not recognised as a whole, or has exits.
        """
        if not isinstance(self.body, ImageTower) or not isinstance(self.body.model, InferenceTransformer):
            raise UserError(
                "this accelerated model cannot return its tokens; call forward_features of the source model"
            )
        return self.body.forward_features(images)

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


def _tensors_of(state: ExitState) -> tuple[Tensor, ...]:
    """The tensors of a state; the images come first."""
    return state.images, *(() if state.features is None else (state.features,)), *state.relations


def _with_tensors(state: ExitState, tensors: tuple[Tensor, ...]) -> ExitState:
    """Replaces the tensors of a state, in the order of ``_tensors_of``."""
    images, *reused = tensors
    features = None if state.features is None else reused.pop(0)
    return ExitState(images, state.next_exit, features, tuple(reused))
