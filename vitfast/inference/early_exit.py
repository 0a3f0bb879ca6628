"""Inference that stops, for each image, at the first exit that is confident enough."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.exit_model import as_exit_model
from vitfast.inference.exit_thresholds import check_thresholds, confidence_of, saved_thresholds


class EarlyExit(nn.Module):
    """Runs a model with exits; an image leaves at the first one whose top softmax probability reaches its threshold.

    After each exit the images that go on are gathered, with what later exits reuse of them (features and relations),
    and nothing more is computed for the others; exits that no image reaches are not run. The result is that of running
    all exits and choosing afterwards, up to the rounding of products over another number of images.

    The host waits for the device once an exit, to learn how many images go on.

    Args:
        model: a model with exits, such as ``create_model("dvt_t2t_vit_12")``. It is put into evaluation mode and
            shared, not copied.
        thresholds: one number an exit, from ``calibrate_exits``. ``-inf`` (or 0) lets all images leave, ``inf`` (or
            anything above 1) none; the last one is not read. None means those of the model's checkpoint, see
            ``SavedExits``.

    Raises:
        UserError: the model has no exits, the thresholds do not fit it, or there are none or several to choose from.
    """

    def __init__(self, model: nn.Module, thresholds: Sequence[float] | None = None) -> None:
        super().__init__()
        self._exits = as_exit_model(model).num_exits
        if thresholds is None:
            thresholds = saved_thresholds(model)
        self.thresholds = check_thresholds(thresholds, self._exits)
        self.model = model
        self.eval()

    def train(self, mode: bool = True) -> EarlyExit:
        """Refuses training mode.

        Raises:
            UserError: ``mode`` is True.
        """
        if mode:
            raise UserError("EarlyExit is for inference; train the model itself, of which every exit learns")
        return super().train(False)

    def extra_repr(self) -> str:
        """The thresholds."""
        return f"thresholds={list(self.thresholds)}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classifies images.

        Args:
            images: ``[B, in_chans, img_size, img_size]``; B may be 0.

        Returns:
            For each image, in the order given: the logits ``[B, num_classes]`` of the exit at which it left, and that
            exit, from 0, ``[B]`` in int64.

        Raises:
            TypeError: the images are not floating point.
            ValueError: the images have another shape, or the model has been put into training mode.
        """
        if self.model.training:
            raise UserError("the model of this EarlyExit is in training mode; call .eval() on it first")
        model = as_exit_model(self.model)
        state = model.start(images)
        going_on = torch.arange(images.shape[0], device=images.device)  # places in the batch
        parts: list[Tensor] = []
        places: list[Tensor] = []
        for index, threshold in enumerate(self.thresholds):
            logits, state = model.advance(state)
            total = len(going_on)
            if index == self._exits - 1:
                count = total
            else:
                leaves = confidence_of(logits) >= threshold
                # Those that leave come first, in the order given. Only their number has to be known to the host.
                order = leaves.byte().argsort(descending=True, stable=True)
                count = int(leaves.sum())
            if count == total:
                parts.append(logits)
                places.append(going_on)
                break
            if count:
                parts.append(logits[order[:count]])
                places.append(going_on[order[:count]])
                state, going_on = state.select(order[count:]), going_on[order[count:]]
            else:
                parts.append(logits[:0])
                places.append(going_on[:0])
        return _in_order(parts, places)


def _in_order(parts: list[Tensor], places: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Puts the logits of each exit and its number at their places in the batch."""
    exits = torch.cat([torch.full_like(part, index) for index, part in enumerate(places)])
    place = torch.cat(places)
    logits = torch.cat(parts)
    return torch.empty_like(logits).index_copy_(0, place, logits), torch.empty_like(exits).index_copy_(0, place, exits)
