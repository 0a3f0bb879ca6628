"""Options of a run that takes half a second: the packaged digits, one block of width 16."""

# 1,293 images in steps of 256: 6 steps an epoch
TINY_RUN = (
    "model.name=vit_nano_patch2_8",
    "data.img_size=8",
    # affine transformations would take half of the time
    "data.augment.affine_degrees=0",
    "data.augment.affine_translate=0",
    "data.augment.affine_scale=0",
    "model.fields.embed_dim=16",
    "model.fields.num_heads=2",
    "model.fields.depth=1",
    "data.batch_size=256",
    "schedule.epochs=2",
    "schedule.warmup_epochs=1",
    "optim.lr=0.01",
)

# what draws random numbers or carries a state from step to step
RICH = (
    "model.drop_rate=0.1",
    "model.drop_path=0.1",
    "data.augment.erase=0.3",
    "data.augment.repeats=3",
    "data.augment.mixup=0.2",
    "data.augment.cutmix=1",
    "optim.ema_decay=0.9",
    "optim.clip_grad=1.0",
    "optim.label_smoothing=0.1",
    "optim.layer_decay=0.9",
    "train.accumulate=2",
)
