"""Accelerate a timm model and read the report
===========================================

One call makes a Vision Transformer of timm faster on the CPU. The report says what runs each layer and how well the
results agree with the source.
"""

# %%
# The source
# ----------
#
# Any of timm's ViTs will do. The weights here are random, so that nothing is downloaded; use ``pretrained=True`` for
# real ones.

import timm
import torch

import vitfast

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
images = torch.randn(8, 3, 224, 224)

# %%
# The fast model
# --------------
#
# ``accelerate`` returns a new module and leaves the source alone. With ``check=`` it runs both on the images, and the
# report contains how well they agree.

fast = vitfast.accelerate(model, precision="fp32", check=images)
print(fast.report())

# %%
# It takes what the source takes, and returns what the source returns:

with torch.inference_mode():
    expected, logits = model(images), fast(images)
print("relative error:", float((logits - expected).norm() / expected.norm()))

# %%
# Precisions
# ----------
#
# ``bf16`` and ``int8`` round the operands of the GEMMs. This is what they cost in accuracy, for this model: the
# distance of the logits from those in float32, for each image.

import matplotlib.pyplot as plt

errors = {}
with torch.inference_mode():
    for precision in ("bf16", "fp16_32", "int8"):
        result = vitfast.accelerate(model, precision=precision)(images)
        errors[precision] = ((result - expected).norm(dim=1) / expected.norm(dim=1)).tolist()

figure, axes = plt.subplots(figsize=(6, 3))
axes.boxplot(list(errors.values()), tick_labels=list(errors))
axes.set(ylabel="relative error of the logits", yscale="log")
figure.tight_layout()

# %%
# The speed depends on the processor: ``vitfast benchmark peers=all`` measures yours beside the other
# engines that are installed.
