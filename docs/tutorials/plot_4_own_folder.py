"""Train on your own folder
========================

A folder with one folder of images for each class is all that training needs. Here it is made from the handwritten
digits of the package; use yours instead.
"""

# %%
# The folder
# ----------

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from vitfast import evaluate, predict, train
from vitfast.data.digits import Digits

root = Path(tempfile.mkdtemp())
images = Digits("train")
for index, label in enumerate(images.labels):
    path = root / "photos" / images.class_names[label] / f"{index}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(images.read(index, in_chans=1)) * 255
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(path)

print(sorted(path.name for path in (root / "photos").iterdir()))

# %%
# Training
# --------
#
# On the command line this is ``vitfast train recipe=… data.dataset=image_folder data.root=photos``. The folder has no
# validation images, so one image in five is held out. For photographs, take ``recipe=finetune
# model.name=vit_small_patch16_224 model.checkpoint=hub``, which starts from published weights.

train.main(
    [
        "recipe=vit_digits",
        "data.dataset=image_folder",
        f"data.root={root / 'photos'}",
        "data.val_share=0.2",
        "data.in_chans=1",
        "data.mean=[0.3]",
        "data.std=[0.38]",
        "data.workers=0",
        "data.batch_size=16",
        "optim.lr=2e-3",
        "data.augment.affine_degrees=0",
        "data.augment.affine_translate=0",
        "schedule.epochs=10",
        "schedule.warmup_epochs=1",
        f"run_dir={root / 'run'}",
    ]
)

# %%
# The run's folder holds the options, the log, checkpoints and the curves:

print(sorted(path.name for path in (root / "run").iterdir()))
figure, axes = plt.subplots(figsize=(8, 4))
axes.imshow(plt.imread(root / "run" / "curves.png"))
axes.axis("off")
figure.tight_layout()

# %%
# The result
# ----------
#
# ``evaluate`` measures the best checkpoint, class by class, and ``predict`` names the classes of images.

evaluate.main([f"checkpoint={root / 'run'}", "split=val"])

# %%
predict.main([f"checkpoint={root / 'run'}", f"images={root / 'photos' / '3'}/*1.png"])
