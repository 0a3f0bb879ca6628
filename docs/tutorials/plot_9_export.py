"""Export, and run without vitfast
===============================

``export`` writes a model for another engine, reads the file again and compares the outputs. An ONNX file needs neither
vitfast nor PyTorch; ONNX Runtime runs it from Python, C++, C#, Java and JavaScript.
"""

# %%
# Export
# ------
#
# The weights are random here; any model of vitfast, timm or torchvision works. This needs ``pip install
# 'vitfast[export]'``.

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import vitfast

torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
model = vitfast.create_model("vit_tiny_patch16_224").eval()
images = torch.randn(4, 3, 224, 224)

print(vitfast.export(model, folder / "model.onnx", images=images))

# %%
# Run it elsewhere
# ----------------
#
# This is a process of its own, which imports NumPy and ONNX Runtime only.

np.save(folder / "images.npy", images.numpy())
program = """
import sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(None, {session.get_inputs()[0].name: np.load("images.npy")})[0]
np.save("logits.npy", logits)
print("modules of torch or vitfast:", [name for name in sys.modules if name.split(".")[0] in ("torch", "vitfast")])
"""
print(subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True, text=True).stdout)

# %%
with torch.inference_mode():
    expected = model(images).numpy()
logits = np.load(folder / "logits.npy")
print("largest difference of a logit:", float(np.abs(logits - expected).max()))

# %%
# Other files
# -----------
#
# ``.vit`` holds weights and a description of the layers, no code; ``vitfast.load`` packs the weights for the processor
# at hand. ``.pt2`` is a program of ``torch.export``.

print(vitfast.export(model, folder / "model.vit", images=images))
print(vitfast.export(model, folder / "model.pt2", images=images))

sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.glob("model.*"))}
figure, axes = plt.subplots(figsize=(6, 2.4))
axes.bar_label(axes.barh(list(sizes), list(sizes.values())), fmt="%.1f MB")
axes.set(xlabel="size of the file in MB", xlim=(0, 1.25 * max(sizes.values())))
figure.tight_layout()

# %%
# A ``.pt2`` runs in C++ without Python when AOTInductor compiles it: ``vitfast.export(model, "model.pt2", aot=True)``.
# :doc:`The guide </docs/guides/deploy>`.
