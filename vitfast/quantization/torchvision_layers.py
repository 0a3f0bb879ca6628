"""Quantized counterparts of torchvision's ViT; imported only after torchvision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import Encoder, EncoderBlock, VisionTransformer

from vitfast.quantization.quantized_module import QuantizedModule


class QuantizedEncoderBlock(QuantizedModule, EncoderBlock):  # type: ignore[misc]
    """Counterpart of torchvision's ``EncoderBlock``: both additions to the residual stream are stored results."""

    ln_1: Any
    ln_2: Any
    self_attention: Any
    dropout: Any
    mlp: Any

    def forward(self, input: Tensor) -> Tensor:
        if self.is_off:
            return super().forward(input)
        normalized = self.ln_1(input)
        attended, _ = self.self_attention(normalized, normalized, normalized, need_weights=False)
        x = self.stored(input + self.dropout(attended))
        return self.stored(x + self.mlp(self.ln_2(x)))


class QuantizedEncoder(QuantizedModule, Encoder):  # type: ignore[misc]
    """Counterpart of torchvision's ``Encoder``: tokens with positions are a stored result."""

    ln: Any
    layers: Any
    dropout: Any
    pos_embedding: Any

    def forward(self, input: Tensor) -> Tensor:
        if self.is_off:
            return super().forward(input)
        return self.ln(self.layers(self.dropout(self.stored(input + self.pos_embedding))))


class QuantizedTorchvisionVisionTransformer(QuantizedModule, VisionTransformer):  # type: ignore[misc]
    """Counterpart of torchvision's ``VisionTransformer``: the tokens, joined, are a stored result."""

    class_token: Any
    encoder: Any
    heads: Any
    _process_input: Any

    def forward(self, x: Tensor) -> Tensor:
        if self.is_off:
            return super().forward(x)
        patches = self._process_input(x)
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.heads(self.encoder(self.stored(tokens))[:, 0])


TORCHVISION_COUNTERPARTS: dict[type[nn.Module], type[QuantizedModule]] = {
    EncoderBlock: QuantizedEncoderBlock,
    Encoder: QuantizedEncoder,
    VisionTransformer: QuantizedTorchvisionVisionTransformer,
}
