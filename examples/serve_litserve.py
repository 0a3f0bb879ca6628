r"""Serves a model over HTTP; LitServe collects requests into batches.

pip install litserve
python -m vitfast.export checkpoint=runs/mine path=model.vit precision=int8
python examples/serve_litserve.py model.vit 8000
echo "{\"image\": \"$(base64 -w 0 photo.jpg)\"}" | curl -H 'Content-Type: application/json' -d @- localhost:8000/predict
"""

import base64
import io
import sys

import litserve
import torch
from PIL import Image

import vitfast


class Classifier(litserve.LitAPI):
    """Answers ``{"image": BASE64}`` with ``{"label": …, "probability": …}``."""

    def __init__(self, path: str, **options: object) -> None:
        super().__init__(**options)
        self.path = path

    def setup(self, device: str) -> None:
        """Loads the model in the worker process."""
        self.model = vitfast.load(self.path)
        self.preprocess = vitfast.preprocessing(self.model)
        self.names = self.model.class_names

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        """Returns an image [C, H, W]."""
        image = Image.open(io.BytesIO(base64.b64decode(request["image"])))
        return self.preprocess(image.convert("RGB"))

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Returns images [B, C, H, W]."""
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Returns probabilities [B, classes]; ``unbatch`` of LitServe gives each request its row."""
        with torch.inference_mode():
            return self.model(x).softmax(1)

    def encode_response(self, output: torch.Tensor) -> dict[str, object]:
        """Names the most probable class."""
        index = int(output.argmax())
        label = str(index) if self.names is None else self.names[index]
        return {"label": label, "probability": float(output[index])}


def main(path: str, port: str = "8000") -> None:
    """Serves until it is interrupted."""
    api = Classifier(path, max_batch_size=16, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(port=int(port), generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
