"""A page in the browser: drop a picture; see the label, where the model looks, which exit answered, and milliseconds.

    pip install 'vitfast[demo]'
    python examples/demo.py RUN [PORT]

RUN is a run or checkpoint of ``python -m vitfast.train``, for example of ``recipe=dvt_mini_cifar10_32px``.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import gradio
import torch
from PIL import Image
from torch import Tensor, nn

import vitfast
from vitfast.data import eval_transform
from vitfast.evaluation.image_files import restore_pixels
from vitfast.evaluation.plots import overlay
from vitfast.inference.attention_rollout import attention_grid
from vitfast.runs.trained_model import PREPROCESSING, load_trained_model


class Demo:
    """A trained model with its accelerated copies."""

    def __init__(self, run: str) -> None:
        self.trained = load_trained_model(run, device=torch.device("cpu"))
        self.model = self.trained.model
        self.transform = eval_transform(**{name: self.trained.data[name] for name in PREPROCESSING})
        self.fast = {name: vitfast.accelerate(self.model, name) for name in ("fp32", "bf16", "int8")}
        # without thresholds in the checkpoint, an exit answers at a confidence of 0.9
        thresholds = self.trained.exit_thresholds or [0.9] * (self.model.num_exits - 1) + [0.0]
        self.exits = vitfast.EarlyExit(self.model, thresholds) if self.model.num_exits > 1 else None

    @torch.no_grad()
    def answer(self, picture: Image.Image | None) -> tuple[dict[str, float], Any, str, list[list[str]]]:
        """Returns probabilities, the picture with the attention on it, the exit, and rows of milliseconds."""
        if picture is None:
            raise gradio.Error("Drop a picture first.")
        images: Tensor = self.transform(picture.convert("L" if self.trained.data["in_chans"] == 1 else "RGB"))[None]
        logits, exit_index = (
            self.exits(images) if self.exits else (self.model(images), torch.zeros(1, dtype=torch.long))
        )
        probabilities = dict(zip(self.trained.class_names, logits[0].softmax(0).tolist(), strict=True))
        maps = vitfast.attention_maps(self.model, images, head="mean")
        layers = len(maps) // self.model.num_exits
        used = maps[exit_index.item() * layers :][:layers]
        reader = getattr(self.model.fields, "pooling", "token")
        grid = attention_grid(vitfast.attention_rollout(used), reader=reader)[0]
        pixels = restore_pixels(images, self.trained.data["mean"], self.trained.data["std"])[0]
        drawing = overlay(pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy(), grid)
        times = [["PyTorch, fp32", f"{milliseconds(self.model, images):.2f}"]]
        times += [[f"accelerated, {name}", f"{milliseconds(fast, images):.2f}"] for name, fast in self.fast.items()]
        return probabilities, drawing, f"exit {exit_index.item() + 1} of {self.model.num_exits}", times

    def page(self) -> gradio.Blocks:
        """Builds the page."""
        with gradio.Blocks(title="vitfast") as page:
            gradio.Markdown(f"# {self.trained.name}")
            with gradio.Row():
                picture = gradio.Image(type="pil", label="picture", sources=["upload"], height=360)
                drawing = gradio.Image(label="where the model looks (attention rollout)", height=360)
            with gradio.Row():
                label = gradio.Label(num_top_classes=5, label="label")
                with gradio.Column():
                    exit_text = gradio.Textbox(label="which exit answered")
                    times = gradio.Dataframe(
                        headers=["one image, all exits", "ms"], label="median of 7", interactive=False
                    )
            picture.upload(self.answer, picture, [label, drawing, exit_text, times])
        return page


def milliseconds(model: nn.Module, images: Tensor) -> float:
    """Returns the median time of a forward pass."""
    samples = []
    for _ in range(8):
        start = time.perf_counter()
        model(images)
        samples.append(1000 * (time.perf_counter() - start))
    return statistics.median(samples[1:])  # the first run warms up


def main(run: str, port: str = "7860") -> None:
    """Serves the page at http://127.0.0.1:PORT until Ctrl+C."""
    Demo(run).page().launch(server_port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
