"""Quantized counterparts of torchvision's ViT; imported only after torchvision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import Encoder, EncoderBlock, VisionTransformer

from vitfast.quantization.quantized_module import QuantizedModule


class QuantizedEncoderBlock(QuantizedModule, EncoderBlock):  # type: ignore[misc]
    """Counterpart of torchvision's ``EncoderBlock``: both additions to the residual stream are stored results."""

    def forward(self, input: Tensor) -> Tensor:
        block: Any = self
        normalized = block.ln_1(input)
        attended, _ = block.self_attention(normalized, normalized, normalized, need_weights=False)
        x = self.stored(input + block.dropout(attended))
        return self.stored(x + block.mlp(block.ln_2(x)))


class QuantizedEncoder(QuantizedModule, Encoder):  # type: ignore[misc]
    """Counterpart of torchvision's ``Encoder``: tokens with positions are a stored result."""

    def forward(self, input: Tensor) -> Tensor:
        encoder: Any = self
        return encoder.ln(encoder.layers(encoder.dropout(self.stored(input + encoder.pos_embedding))))


class QuantizedTorchvisionVisionTransformer(QuantizedModule, VisionTransformer):  # type: ignore[misc]
    """Counterpart of torchvision's ``VisionTransformer``: the tokens, joined, are a stored result."""

    def forward(self, x: Tensor) -> Tensor:
        model: Any = self
        patches = model._process_input(x)
        tokens = torch.cat([model.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return model.heads(model.encoder(self.stored(tokens))[:, 0])


COUNTERPARTS: dict[type[nn.Module], type[QuantizedModule]] = {
    EncoderBlock: QuantizedEncoderBlock,
    Encoder: QuantizedEncoder,
    VisionTransformer: QuantizedTorchvisionVisionTransformer,
}
