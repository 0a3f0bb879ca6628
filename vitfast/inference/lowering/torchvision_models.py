"""Lowering of torchvision's ``VisionTransformer``; imported only if torchvision is imported already."""

from __future__ import annotations

from torchvision.models.vision_transformer import Encoder, EncoderBlock, MLPBlock, VisionTransformer

from vitfast.inference.ir import BlockSpec, EmbeddingSpec, ReadoutSpec, TransformerSpec
from vitfast.inference.lowering import common_layers as common
from vitfast.inference.lowering.module_checks import Part


def lower_model(part: Part) -> TransformerSpec:
    """Lowers torchvision's ``VisionTransformer``.

    Raises:
        NotRecognised: it is something else, or something outside its blocks was changed.
    """
    model = part.expect(VisionTransformer, children=("conv_proj", "encoder", "heads"), tensors=("class_token",))
    encoder = part["encoder"]
    positions = encoder.expect(Encoder, children=("dropout", "layers", "ln"), tensors=("pos_embedding",)).pos_embedding
    common.passes_in_evaluation(encoder["dropout"])
    patches = common.patches_of_convolution(part["conv_proj"], common.pair(model.image_size))
    return TransformerSpec(
        EmbeddingSpec(patches, (model.class_token,), positions),
        common.blocks(encoder["layers"], lower_block),
        common.norm(encoder["ln"]),
        (ReadoutSpec("token", layers=common.head_layers(part["heads"])),),
    )


def lower_block(part: Part) -> BlockSpec:
    """Lowers torchvision's ``EncoderBlock``."""
    part.expect(EncoderBlock, children=("ln_1", "self_attention", "dropout", "ln_2", "mlp"))
    part["mlp"].expect(MLPBlock, children="01234")
    fc1, act, drop1, fc2, drop2 = part["mlp"].children()
    common.passes_in_evaluation(part["dropout"], drop1, drop2)
    return BlockSpec(
        part.name,
        common.norm(part["ln_1"]),
        common.self_attention(part["self_attention"]),
        common.norm(part["ln_2"]),
        common.mlp(fc1, act, fc2),
    )
