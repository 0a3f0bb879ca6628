"""The Dynamic Vision Transformer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from vitfast.layers.patch_embed import check_images
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.dvt_exit import DVTExit
from vitfast.models.dvt_fields import DVTFields
from vitfast.models.dvt_released_keys import from_released_key
from vitfast.models.exit_state import ExitState
from vitfast.models.image_model import ImageModel
from vitfast.models.resize_positions import resize_positions


class DVT(ImageModel):
    """A cascade of transformers on ever more tokens of an image, each with its own classifier (Wang et al., 2021).

    From the second on, an exit reuses the features and the attention logits of the one before. ``forward`` runs all of
    them. To stop early, run one at a time and go on with the images that need it::

        state = model.start(images)
        while state.next_exit < model.num_exits:
            logits, state = model.advance(state)
            ...
            state = state.select(undecided)

    Args:
        model_name: as in ``ImageModel``.
        fields: everything that defines it.
    """

    fields: DVTFields

    def __init__(self, model_name: str, fields: DVTFields) -> None:
        super().__init__(model_name, fields)
        self.num_exits = fields.num_exits
        self.exits = nn.ModuleList(DVTExit(fields, index) for index in range(fields.num_exits))
        # the last exit is the best one, and so the main head
        self.head_prefixes = tuple(  # type: ignore[misc]
            f"exits.{index}.head." for index in reversed(range(fields.num_exits))
        )

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that, beside the one-dimensional ones, take no weight decay.

        Every exit's class token and positions, as in DeiT and T2T-ViT. The original training decays them, because its
        code asks the wrapper, which does not pass the exits' answer on.
        """
        return {f"exits.{index}.{name}" for index in range(self.num_exits) for name in ("cls_token", "pos_embed")}

    def own_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames the keys of the released models, see ``DVT_RELEASED_KEYS``."""
        return {from_released_key(key): tensor for key, tensor in state.items()}

    def resize_state(
        self, state: dict[str, Tensor], position_interpolation: PositionInterpolation | None = None
    ) -> list[str]:
        """Resamples every exit's position embeddings, by default as the field says."""
        interpolation = position_interpolation or self.fields.position_interpolation
        resized = []
        for index in range(self.num_exits):
            key = f"exits.{index}.pos_embed"
            resized += resize_positions(state, key, self.get_parameter(key), interpolation)
        return resized

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classifies images at every exit.

        Args:
            images: ``[B, in_chans, img_size, img_size]``.

        Returns:
            For each exit its logits ``[B, num_classes]``, or the class token's channels ``[B, C]`` of a model without
            heads.

        Raises:
            TypeError: the images are not floating point.
            ValueError: the images have another shape.
        """
        return tuple(self.exit_by_exit(images))

    def exit_by_exit(self, images: Tensor) -> Iterator[Tensor]:
        """Yields what ``forward`` returns, one exit at a time; those that are not asked for are not computed."""
        state = self.start(images)
        for _ in self.exits:
            logits, state = self.advance(state)
            yield logits

    def start(self, images: Tensor) -> ExitState:
        """Begins with the first exit.

        Args:
            images: ``[B, in_chans, img_size, img_size]``.

        Raises:
            TypeError: as ``forward``.
            ValueError: as ``forward``.
        """
        check_images(images, self.in_chans, self.img_size)
        return ExitState(images)

    def advance(self, state: ExitState) -> tuple[Tensor, ExitState]:
        """Runs the next exit.

        Args:
            state: what ``start`` or ``advance`` returned, or a part of its images by ``select``.

        Returns:
            The exit's logits ``[B, num_classes]`` and the state before the exit after it.

        Raises:
            ValueError: there is no exit left.
        """
        index = state.next_exit
        if index >= self.num_exits:
            raise ValueError(f"the model has {self.num_exits} exits, and this state has passed them all")
        is_last = index == self.num_exits - 1
        logits, features, relations = self.exits[index](
            state.images,
            state.features,
            state.relations,
            return_relations=self.fields.relation_reuse and not is_last,
        )
        reused = features if self.fields.feature_reuse and not is_last else None
        return logits, ExitState(state.images, index + 1, reused, relations)
