"""Trains a model of your own in low precision: quantization-aware training of any torch module.

python examples/own_model_qat.py [EPOCHS]
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import vitfast
from vitfast.config import load_config
from vitfast.data import build_dataset


def main(epochs: str = "3") -> None:
    """Prints the accuracy on the packaged digits before and after the weights are rounded."""
    torch.manual_seed(0)
    data = load_config(["data.img_size=8"]).data  # 1 x 8 x 8 pixels
    train = DataLoader(build_dataset(data, "train", seed=0, augment=False), batch_size=32, shuffle=True)
    test = DataLoader(build_dataset(data, "test", seed=0), batch_size=360)
    model = nn.Sequential(nn.Conv2d(1, 32, 2, 2), nn.GELU(), nn.Flatten(), nn.LayerNorm(512), nn.Linear(512, 10))
    vitfast.quantize_(model, vitfast.QATConfig(vitfast.FloatConfig("fp8_e4m3fn"), step="prepare"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _epoch in range(int(epochs)):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    images, labels = next(iter(test))
    print(f"prepared:  {(model(images).argmax(1) == labels).float().mean():.1%}")
    vitfast.quantize_(model, vitfast.QATConfig(step="convert"))
    print(f"converted: {(model(images).argmax(1) == labels).float().mean():.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
