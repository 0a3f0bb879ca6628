from __future__ import annotations

import pytest
import torch

import vitfast
from support.accelerable import accelerable, sample_images
from support.exit_models import EXIT_MODELS, exit_model, random_images
from vitfast.inference import exit_gmacs, exit_latency_ms


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kind", EXIT_MODELS)
@torch.no_grad()
def test_every_exit_runs_without_falling_back(kind, precision):
    model = exit_model(kind)
    images = random_images(model, 4)
    fast = vitfast.accelerate(model, precision, check=images)
    assert fast.report().fell_back == ()
    expected = model(images)
    results = fast(images)
    assert len(results) == model.num_exits
    tolerance = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.3}[precision]
    for result, wanted in zip(results, expected, strict=True):
        assert (result - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("kind", EXIT_MODELS)
def test_images_use_the_same_exit_as_the_source(kind):
    model = exit_model(kind)
    images = random_images(model, 12)
    fast = vitfast.accelerate(model, "fp32")
    with torch.no_grad():
        confidence = torch.stack([logits.softmax(1).amax(1) for logits in model(images)])
    ordered = confidence.sort(dim=1).values
    thresholds = ordered[:, 5:7].mean(dim=1).tolist()  # between two images: rounding moves none across
    logits, exits = vitfast.EarlyExit(model, thresholds)(images)
    fast_logits, fast_exits = vitfast.EarlyExit(fast, thresholds)(images)
    assert torch.equal(fast_exits, exits)
    assert len(exits.unique()) > 1, "all images leave at one exit, so the test says little"
    torch.testing.assert_close(fast_logits, logits, rtol=1e-3, atol=1e-3)


def test_the_state_passes_from_exit_to_exit():
    model = exit_model("deit")
    fast = vitfast.accelerate(model)
    state = fast.start(random_images(model, 3))
    for _ in range(fast.num_exits):
        _, state = fast.advance(state)
    with pytest.raises(ValueError, match="has 3 exits, and this state is after the last one"):
        fast.advance(state)
    with pytest.raises(ValueError, match="images must have shape"):
        fast.start(torch.zeros(1, 3, 8, 8))


def test_budgets_in_milliseconds_are_measured_and_those_in_gmacs_ask_for_the_source():
    model = exit_model("nano")
    fast = vitfast.accelerate(model)
    assert len(exit_latency_ms(fast, random_images(model, 2), repeats=1)) == 2
    with pytest.raises(vitfast.UserError, match="counted on the source model"):
        exit_gmacs(fast)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e38])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16_32", "int8"])
@torch.no_grad()
def test_an_extreme_image_changes_no_bit_of_another(precision, value):
    model = exit_model("nano")
    images = random_images(model, 6)
    broken = images.clone()
    broken[2] = value
    others = [0, 1, 3, 4, 5]
    early = vitfast.EarlyExit(vitfast.accelerate(model, precision), [0.3] * (model.num_exits - 1) + [0.0])
    for result, expected in zip(early(broken), early(images), strict=True):
        assert torch.equal(result[others], expected[others])

    source = accelerable("timm: vit")
    embed = vitfast.accelerate(source, precision).embed
    images = sample_images(source, 6)
    broken = images.clone()
    broken[2] = value
    assert torch.equal(embed(broken)[others], embed(images)[others])
