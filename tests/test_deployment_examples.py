"""The examples of deployment run: a C++ program, a server, and a model repository."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitfast
from support.accelerable import accelerable, sample_images
from support.subprocesses import free_port, python_environment
from vitfast.models.preprocessing_settings import timm_settings_of
from vitfast.ops.library import library_path

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_serve_litserve(tmp_path):
    pytest.importorskip("litserve")
    random = np.random.default_rng(0)
    images = [tmp_path / f"{name}.png" for name in ("first", "second")]
    for image in images:
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(image)
    model = accelerable("vitfast: vit")
    settings = {"img_size": 32, "in_chans": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    settings |= {"resize": "short_side", "interpolation": "bilinear", "crop_pct": 1.0}
    model.pretrained_cfg = timm_settings_of(settings)
    model.class_names = [f"class {index}" for index in range(7)]
    path = tmp_path / "model.vit"
    vitfast.export(model, path)
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "serve_litserve.py"), str(path), port]
    with open(tmp_path / "log.txt", "wb") as log:
        server = subprocess.Popen(command, env=python_environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_port(port, server)
        pixels = torch.stack([vitfast.preprocessing(model)(Image.open(one)) for one in images])
        expected = model(pixels).detach().softmax(1).max(1)
        for index, one in enumerate(images):
            content = json.dumps({"image": base64.b64encode(one.read_bytes()).decode()}).encode()
            url = f"http://127.0.0.1:{port}/predict"
            request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
            answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
            assert answer["label"] == f"class {expected.indices[index]}"
            assert answer["probability"] == pytest.approx(float(expected.values[index]), rel=1e-3)
    except (AssertionError, OSError) as error:
        raise AssertionError((tmp_path / "log.txt").read_text()) from error
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def wait_for_port(port: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert server.poll() is None, "the server has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
            return
        time.sleep(0.1)
    raise AssertionError("the server does not listen")


@pytest.mark.slow
def test_triton_configuration_fits_the_onnx_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = vitfast.create_model("vit_tiny_patch16_224", num_classes=1000, depth=1)
    vitfast.export(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    text = (EXAMPLES / "triton" / "vit" / "config.pbtxt").read_text()
    fields = re.findall(r'name: "(\w+)"\s+data_type: (\w+)\s+dims: \[ ([\d, ]+) \]', text)
    assert [name for name, _, _ in fields] == [graph.input[0].name, graph.output[0].name]
    for value, (_, data_type, dims) in zip((graph.input[0], graph.output[0]), fields, strict=True):
        shape = value.type.tensor_type.shape.dim
        assert (value.type.tensor_type.elem_type, data_type) == (onnx.TensorProto.FLOAT, "TYPE_FP32")
        assert shape[0].dim_param  # any batch size
        assert [one.dim_value for one in shape[1:]] == [int(one) for one in dims.split(",")]


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    """Builds the C++ program."""
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if library_path("vitfast_cpu") is None:
        pytest.skip("vitfast's library is not built")
    folder = tmp_path_factory.mktemp("build")
    configure = ["cmake", "-S", EXAMPLES / "cpp", "-B", folder, f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", folder]):
        finished = subprocess.run(command, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "classify"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_cpp_program(tmp_path, classify, precision):
    fast = vitfast.accelerate(accelerable("vitfast: vit"), precision)
    images = sample_images(fast, 5)
    package = tmp_path / "model.pt2"
    report = vitfast.export(fast, package, images=images, aot=True)
    assert report.agrees, str(report)

    def run(batch: int, **environment: str) -> subprocess.CompletedProcess[str]:
        images[:batch].numpy().tofile(tmp_path / "images.bin")
        shape = [str(size) for size in images[:batch].shape]
        command = [classify, package, str(library_path("vitfast_cpu")), tmp_path / "images.bin", *shape]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})

    for batch in (1, 2, 5):
        finished = run(batch)
        assert finished.returncode == 0, finished.stderr
        found = torch.tensor([[float(one) for one in line.split()] for line in finished.stdout.splitlines()])
        torch.testing.assert_close(found, fast(images[:batch]), rtol=1e-4, atol=1e-5)
    refused = run(1, VITFAST_ISA="baseline")
    assert refused.returncode == 1
    assert "vitfast_instruction_set is" in refused.stderr
