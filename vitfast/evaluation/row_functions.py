"""What is computed for each image of a collection: its embedding, or its most probable classes."""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from vitfast.data.collection import StoredImage
from vitfast.data.image_file import decode_image
from vitfast.data.transforms import ResizeAndCrop
from vitfast.errors import UserError
from vitfast.evaluation.features import LAST_CLS, feature_reader
from vitfast.inference import EarlyExit
from vitfast.inference.accelerate import accelerate
from vitfast.inference.accelerated_model import AcceleratedModel
from vitfast.inference.image_tower import ImageTower
from vitfast.inference.normalization import Normalization
from vitfast.models import ImageModel
from vitfast.runs.trained_model import TrainedModel

Columns = dict[str, list[Any]]

_JPEG_GAP = 2  # a JPEG is decoded at least this many times larger than it is resized to, as Pillow's reducing_gap


class RowFunction:
    """Computes the columns of results from 8-bit images, with an accelerated copy of a model.

    Args:
        trained: the model and its preprocessing.
        precision: as in ``vitfast.accelerate``.
        shrink_jpeg: whether large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, at least twice as large as they
            are resized to.

    Attributes:
        columns: name and kind of each column: ``vector`` (of ``width`` numbers), ``numbers``, ``texts`` or ``integer``.
        width: length of vectors.
        device: where it computes.
        shrink_to: pixels of the shorter side at which JPEGs are decoded at least; None: at their size.
    """

    columns: dict[str, str]
    width = 0

    def __init__(self, trained: TrainedModel, *, precision: str | None = None, shrink_jpeg: bool = True) -> None:
        data = trained.data
        self.in_chans: int = data["in_chans"]
        self._geometry = ResizeAndCrop(
            data["img_size"], data["crop_pct"], v2.InterpolationMode(data["interpolation"]), data["resize"]
        )
        self.shrink_to = _JPEG_GAP * self._geometry.side if shrink_jpeg else None
        mean, std = (tuple(np.broadcast_to(data[name], self.in_chans).tolist()) for name in ("mean", "std"))
        self.device = trained.device
        self._normalization: Normalization | None = None
        self.fast: AcceleratedModel
        if isinstance(trained.model, AcceleratedModel):  # of a .vit file: in its precision, and it normalizes images
            self.fast = trained.model
            return
        try:
            self.fast = accelerate(trained.model, precision, mean=mean, std=std)
        except UserError:  # only parts of it are accelerated, and they take normalized images
            self.fast = accelerate(trained.model, precision)
            self._normalization = Normalization.of(mean, std)

    def read(self, image: StoredImage) -> tuple[str | None, Tensor | None, str | None]:
        """Reads and decodes an image.

        Returns:
            The SHA-256 of its bytes, its pixels ``[C, H, W]``, uint8, and an error; None for what there is not.
        """
        sha256 = None
        try:
            content = image.read()
            sha256 = hashlib.sha256(content).hexdigest()
            return sha256, self.decode(content, image.path), None
        except UserError as error:
            return sha256, None, str(error)

    def decode(self, content: bytes, name: str) -> Tensor:
        """Decodes, resizes and crops an encoded image; returns pixels ``[C, H, W]``, uint8.

        Raises:
            UserError: it cannot be decoded; the message begins with ``name``.
        """
        return self.fit(decode_image(io.BytesIO(content), name, self.in_chans, self.shrink_to))

    def from_pixels(self, pixels: np.ndarray) -> Tensor:
        """Resizes and crops a decoded image ``[H, W, 3]`` or ``[H, W]``, uint8, as ``decode``."""
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise UserError(f"an image must be [H, W, 3] or [H, W] in uint8, got {list(pixels.shape)}, {pixels.dtype}")
        return self.fit(Image.fromarray(pixels).convert("L" if self.in_chans == 1 else "RGB"))

    def fit(self, image: Image.Image) -> Tensor:
        """Resizes and crops a decoded image; returns pixels ``[C, H, W]``, uint8.

        PyTorch resizes 8-bit tensors with SIMD: 500 x 375 pixels take 0.5 ms instead of Pillow's 2.6 (Zen 3). Of 200
        photographs 0.3 % of the results differ from Pillow's, by at most 2.
        """
        if self._geometry.interpolation == v2.InterpolationMode.NEAREST:  # the one that PyTorch rounds in another way
            return _to_tensor(self._geometry(image))
        return self._geometry(_to_tensor(image))

    def __call__(self, pixels: Tensor) -> Columns:
        """Computes the values of the columns for images ``[B, C, H, W]``, uint8."""
        images = pixels.to(self.device)
        if self._normalization is not None:
            images = self._normalization.apply(images)
        with torch.inference_mode():
            return self.compute(images)

    def compute(self, images: Tensor) -> Columns:
        """Computes the columns from the model's input ``[B, C, H, W]``."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """Returns the options that determine the results."""
        included = self.fast.normalization
        return {
            "precision": self.fast.report().precision,
            "shrink_jpeg": self.shrink_to is not None,
            "normalization": None if included is None else [included.mean, included.std],
        }


def _to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))  # [H, W] or [H, W, C]
    return pixels.reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


class Embedder(RowFunction):
    """Computes embeddings: pooled features, the input of the classifier, or CLIP's projection.

    Args:
        trained: the model; it needs no classes.
        normalize: whether to divide each embedding by its L2 norm.
        **options: of ``RowFunction``.

    Raises:
        UserError: the model has no embeddings.
    """

    def __init__(self, trained: TrainedModel, *, normalize: bool = False, **options: Any) -> None:
        super().__init__(trained, **options)
        self._normalize = normalize
        self._hooks = ExitStack()
        self._embed = self._embedding_of(trained.model)
        self.columns = {"embedding": "vector"}
        size = self._geometry.img_size
        self.width = len(self(torch.zeros(1, self.in_chans, size, size, dtype=torch.uint8))["embedding"][0])

    def _embedding_of(self, source: nn.Module) -> Any:
        if getattr(source, "num_exits", 1) > 1:
            raise UserError("a model with several exits has no single embedding; use python -m vitfast.predict")
        if any(isinstance(module, ImageTower) for module in self.fast.body.modules()):
            return self.fast.embed
        model = self.fast.body if isinstance(self.fast.body, ImageModel) else source  # with accelerated parts, or as is
        if not isinstance(model, ImageModel):
            raise UserError(f"{type(source).__name__} is not supported: vitfast does not know which output to embed")
        read = feature_reader(model, LAST_CLS, self._hooks)

        def embed(images: Tensor) -> Tensor:
            model(images)
            return read()

        return embed

    def compute(self, images: Tensor) -> Columns:
        """Computes the column ``embedding``: float32 arrays ``[C]``."""
        embeddings_BC = self._embed(images).float()
        if self._normalize:
            embeddings_BC = F.normalize(embeddings_BC, dim=-1)
        # a copy: embeddings may be a view that keeps the tokens of all patches
        return {"embedding": list(embeddings_BC.cpu().clone().numpy())}

    def record(self) -> dict[str, Any]:
        """Returns the options that determine the results."""
        return {**super().record(), "normalize": self._normalize}


class Classifier(RowFunction):
    """Computes the most probable classes.

    Args:
        trained: the model.
        top: number of classes.
        early_exit: stop at the first confident exit if the checkpoint has thresholds.
        **options: of ``RowFunction``.
    """

    def __init__(self, trained: TrainedModel, *, top: int = 3, early_exit: bool = True, **options: Any) -> None:
        super().__init__(trained, **options)
        self._names = trained.class_names
        self._top = min(top, len(self._names))
        thresholds = trained.exit_thresholds if early_exit else None
        model: Any = self.fast
        self._exits = None if thresholds is None else EarlyExit(model, thresholds)
        self.columns = {"classes": "texts", "probabilities": "numbers"}
        if self._exits is not None:
            self.columns["exit"] = "integer"

    def compute(self, images: Tensor) -> Columns:
        """Computes the columns ``classes`` and ``probabilities``, the most probable first, and ``exit``, from 1."""
        found: Columns = {}
        if self._exits is not None:
            logits, exit_index = self._exits(images)
            found["exit"] = (exit_index + 1).tolist()
        else:
            output = self.fast(images)
            output = getattr(output, "logits", output)
            logits = output[-1] if isinstance(output, tuple) else output  # the last exit
        values, indices = logits.float().softmax(dim=1).topk(self._top, dim=1)
        classes = [[self._names[index] for index in row] for row in indices.tolist()]
        return {"classes": classes, "probabilities": values.tolist(), **found}

    def record(self) -> dict[str, Any]:
        """Returns the options that determine the results."""
        return {**super().record(), "top": self._top, "early_exit": self._exits is not None}
