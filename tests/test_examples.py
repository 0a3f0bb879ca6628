"""The examples and the tutorials run; examples on small models and images."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.accelerable import accelerable

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TUTORIALS = sorted(ROOT.glob("docs/tutorials/plot_*.py"))
SIZES = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("first", "second")]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def run(name: str, *arguments: str) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](*arguments)


def test_clip_embeddings(tmp_path, images, capsys):
    from transformers import CLIPImageProcessor

    accelerable("transformers: CLIPVisionModelWithProjection").save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(**SIZES).save_pretrained(tmp_path / "clip")
    run("clip_embeddings.py", str(tmp_path / "clip"), *images)
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first[0] == second[1] == "1.000"
    assert first[1] == second[0] != "1.000"
    assert first[2] == images[0]


def test_dinov3_features(tmp_path, images):
    from transformers import ViTImageProcessor

    accelerable("transformers: DINOv3ViTModel").save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "dino")
    run("dinov3_features.py", str(tmp_path / "dino"), images[0], str(tmp_path / "features.png"))
    picture = Image.open(tmp_path / "features.png")
    assert picture.size == (50, 40)
    assert np.asarray(picture).std() > 10


def test_folder_to_parquet(tmp_path, images, capsys):
    pytest.importorskip("pyarrow")
    from transformers import ViTImageProcessor

    accelerable("transformers: ViTModel").save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    Image.open(images[0]).save(tmp_path / "third.png")
    (tmp_path / "broken.png").write_text("no image")
    run("folder_to_parquet.py", str(tmp_path / "vit"), f"{tmp_path}/*.png", str(tmp_path / "out"))
    *_, counted, similar = capsys.readouterr().out.splitlines()
    assert counted == f"4 rows, 1 unreadable: ['{tmp_path}/broken.png']"
    assert {images[0], f"{tmp_path}/third.png"} <= set(similar.split())


def test_accelerate_timm(capsys):
    pytest.importorskip("timm")
    run("accelerate_timm.py", "test_vit", "fp32", "2")
    assert re.search(r"vitfast, fp32: [\d.]+ images/s", capsys.readouterr().out)


def test_torchvision_vit(monkeypatch, images, capsys):
    from torchvision import models
    from torchvision.models import VisionTransformer

    def build(weights):
        torch.manual_seed(0)
        return VisionTransformer(image_size=224, patch_size=32, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=32)

    monkeypatch.setattr(models, "vit_b_16", build)
    run("torchvision_vit.py", *images)
    first, second = capsys.readouterr().out.splitlines()
    categories = models.ViT_B_16_Weights.DEFAULT.meta["categories"]
    assert re.fullmatch(rf"{images[0]}: ({'|'.join(map(re.escape, categories))}) [\d.]+%", first)
    assert second.startswith(images[1])


def test_own_model_qat(capsys):
    run("own_model_qat.py", "2")
    prepared, converted = (float(line.split()[1].rstrip("%")) for line in capsys.readouterr().out.splitlines())
    assert prepared > 80
    assert prepared == converted


@pytest.mark.slow
def test_demo_in_a_browser(tmp_path, monkeypatch):
    """Uploads an image of a digit to the page in headless Chromium, and reads what it shows."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'vitfast[demo]'")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if None in programs.values():
        pytest.skip("there is no chromium or chromedriver: apt-get install chromium chromium-driver")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    from vitfast import train
    from vitfast.data.digits import Digits

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    options = ["model.name=dvt_nano_16", "schedule.epochs=8", "schedule.warmup_epochs=1", f"run_dir={tmp_path / 'run'}"]
    assert train.main(options) == 0
    digits = Digits("test")
    path = tmp_path / "digit.png"
    pixels = np.asarray(digits.read(digits.labels.index(0), in_chans=1)) * 255
    Image.fromarray(pixels.astype(np.uint8)).save(path)

    page = runpy.run_path(str(EXAMPLES / "demo.py"))["Demo"](str(tmp_path / "run")).page()
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    chrome = webdriver.ChromeOptions()
    chrome.binary_location = programs["chromium"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        chrome.add_argument(argument)
    service = webdriver.ChromeService(programs["chromedriver"])
    try:
        with webdriver.Chrome(options=chrome, service=service) as browser:
            browser.get(address)
            wait = WebDriverWait(browser, 120)
            wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, "input[type=file]"))[0].send_keys(str(path))
            shown = wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, "[data-testid=label-output-value]"))
            wait.until(lambda one: "accelerated, int8" in one.page_source)
            assert shown[0].text == "0"
            exit_text = browser.find_element(By.CSS_SELECTOR, "textarea").get_attribute("value")
            assert re.fullmatch(r"exit [12] of 2", exit_text)
            assert len(browser.find_elements(By.CSS_SELECTOR, "img")) >= 2
            browser.save_screenshot(str(tmp_path / "demo.png"))
    finally:
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials(tutorial, tmp_path):
    pytest.importorskip("timm")
    pytest.importorskip("onnxruntime")
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, tutorial], cwd=tmp_path, env=environment, check=True)
