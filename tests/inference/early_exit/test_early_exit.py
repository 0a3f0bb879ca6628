"""Early exit against running all exits and choosing afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vitfast
from support.exit_models import EXIT_MODELS, exit_model, random_images
from vitfast import EarlyExit, UserError
from vitfast.models import DVT, ExitState


@torch.no_grad()
def choose_afterwards(model: DVT, images: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Runs all exits on all images, then chooses for each image the first confident exit."""
    outputs = model(images)
    chosen = []
    for image in range(len(images)):
        confidences = [float(logits[image].softmax(dim=0).max()) for logits in outputs]
        confident = [index for index, value in enumerate(confidences) if value >= thresholds[index]]
        chosen.append(min([*confident, len(outputs) - 1]))
    logits = [outputs[index][image] for image, index in enumerate(chosen)]
    return torch.stack(logits), torch.tensor(chosen)


@torch.no_grad()
def middle_thresholds(model: DVT, images: Tensor, share: float = 0.5) -> list[float]:
    """Thresholds that about ``share`` of the images reach at each exit, none close to a confidence."""
    thresholds = []
    for logits in model(images):
        ordered = logits.softmax(dim=1).amax(dim=1).sort().values
        place = min(max(round(len(images) * (1 - share)), 1), len(images) - 1)
        thresholds.append(float(ordered[place - 1] + ordered[place]) / 2)
    return thresholds


def assert_equal(model: DVT, images: Tensor, thresholds: Sequence[float]) -> Tensor:
    logits, exit_index = EarlyExit(model, thresholds)(images)
    expected_logits, expected_index = choose_afterwards(model, images, thresholds)
    assert exit_index.dtype == torch.int64
    assert exit_index.tolist() == expected_index.tolist()
    assert logits.argmax(dim=1).tolist() == expected_logits.argmax(dim=1).tolist()
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)
    return exit_index


@pytest.mark.parametrize("kind", EXIT_MODELS)
@pytest.mark.parametrize("batch", [7, 24])
def test_it_is_choosing_afterwards(kind: str, batch: int) -> None:
    model = exit_model(kind)
    images = random_images(model, batch)
    exit_index = assert_equal(model, images, middle_thresholds(model, images))
    assert set(exit_index.tolist()) == set(range(model.num_exits))


@pytest.fixture(scope="module")
def three_exits() -> DVT:
    return exit_model("deit")


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 9),
    quantiles=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    seed=st.integers(0, 3),
)
def test_any_thresholds_and_batch(three_exits: DVT, batch: int, quantiles: list[float], seed: int) -> None:
    images = random_images(three_exits, batch, seed)
    with torch.no_grad():
        confidences = [logits.softmax(dim=1).amax(dim=1) for logits in three_exits(images)]
    # slightly below a confidence, so that the rounding of another batch size does not matter
    thresholds = [float(c.quantile(q)) - 1e-4 for c, q in zip(confidences, quantiles, strict=False)]
    near = any((c - t).abs().min() < 2e-5 for c, t in zip(confidences, thresholds, strict=False))
    if not near:
        assert_equal(three_exits, images, [*thresholds, 0.0])


@pytest.mark.parametrize("first", range(3))
def test_all_leave_at_once(three_exits: DVT, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exits that no image reaches are not run."""
    images = random_images(three_exits, 4)
    expected = three_exits(images)[first]
    run = []
    advance = DVT.advance

    def recording(model: DVT, state: ExitState) -> tuple[Tensor, ExitState]:
        run.append((state.next_exit, len(state.images)))
        return advance(model, state)

    monkeypatch.setattr(DVT, "advance", recording)
    thresholds = [math.inf] * first + [-math.inf] * (3 - first)
    logits, exit_index = EarlyExit(three_exits, thresholds)(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert exit_index.tolist() == [first] * 4
    assert run == [(index, 4) for index in range(first + 1)]


def test_only_the_survivors_are_computed(three_exits: DVT, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(three_exits, 12)
    thresholds = middle_thresholds(three_exits, images, 0.4)
    index = choose_afterwards(three_exits, images, thresholds)[1]
    seen = []
    advance = DVT.advance

    def recording(model: DVT, state: ExitState) -> tuple[Tensor, ExitState]:
        sizes = {len(state.images), *(len(relation) for relation in state.relations)}
        seen.append(sizes | ({len(state.features)} if state.features is not None else set()))
        return advance(model, state)

    monkeypatch.setattr(DVT, "advance", recording)
    EarlyExit(three_exits, thresholds)(images)
    sizes = [int((index >= exit_number).sum()) for exit_number in range(3)]
    assert 12 == sizes[0] > sizes[1] > sizes[2] > 0
    assert seen == [{size} for size in sizes]


def test_the_last_threshold_is_not_read(three_exits: DVT) -> None:
    images = random_images(three_exits, 3)
    assert EarlyExit(three_exits, [2.0, 2.0, 2.0])(images)[1].tolist() == [2, 2, 2]
    assert EarlyExit(three_exits, [math.inf, math.inf, math.inf])(images)[1].tolist() == [2, 2, 2]


def test_a_confidence_equal_to_its_threshold_is_enough(three_exits: DVT) -> None:
    images = random_images(three_exits, 1)
    with torch.no_grad():
        confidence = three_exits(images)[0].softmax(dim=1).max()
    enough, too_much = float(confidence), float(torch.nextafter(confidence, torch.tensor(2.0)))
    assert EarlyExit(three_exits, [enough, 2.0, 0.0])(images)[1].tolist() == [0]
    assert EarlyExit(three_exits, [too_much, 2.0, 0.0])(images)[1].tolist() == [2]


@pytest.mark.parametrize("kind", ["nano", "deit", "t2t"])
@pytest.mark.parametrize("thresholds", [-math.inf, 0.5, math.inf])
def test_no_images(kind: str, thresholds: float) -> None:
    model = exit_model(kind)
    logits, exit_index = EarlyExit(model, [thresholds] * model.num_exits)(random_images(model, 0))
    assert (logits.shape, exit_index.shape, exit_index.dtype) == ((0, 5), (0,), torch.int64)


@pytest.mark.parametrize("kind", ["nano", "t2t"])
def test_the_order_of_the_batch_does_not_matter(kind: str) -> None:
    model = exit_model(kind)
    images = random_images(model, 16)
    early = EarlyExit(model, middle_thresholds(model, images))
    logits, exit_index = early(images)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    other_logits, other_index = early(images[order])
    assert len(set(exit_index.tolist())) > 1
    assert other_index.tolist() == exit_index[order].tolist()
    torch.testing.assert_close(other_logits, logits[order], rtol=0, atol=1e-4)


def test_one_image_at_a_time_is_the_same(three_exits: DVT) -> None:
    images = random_images(three_exits, 8)
    early = EarlyExit(three_exits, middle_thresholds(three_exits, images))
    logits, exit_index = early(images)
    single = [early(images[index : index + 1]) for index in range(8)]
    assert torch.cat([index for _, index in single]).tolist() == exit_index.tolist()
    torch.testing.assert_close(torch.cat([one for one, _ in single]), logits, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["nano", "deit", "t2t"])
def test_under_bfloat16(kind: str) -> None:
    model = exit_model(kind)
    images = random_images(model, 16)
    with torch.autocast("cpu", torch.bfloat16):
        thresholds = middle_thresholds(model, images)
        logits, exit_index = EarlyExit(model, thresholds)(images)
        expected = model(images)
    assert logits.dtype == expected[0].dtype == torch.bfloat16
    assert set(exit_index.tolist()) == set(range(model.num_exits))
    chosen = torch.stack(expected)[exit_index, torch.arange(16)]
    torch.testing.assert_close(logits.float(), chosen.float(), rtol=0.05, atol=0.05 * float(chosen.abs().max()))


def test_it_is_for_inference(three_exits: DVT) -> None:
    model = exit_model("nano").train()
    early = EarlyExit(model, [0.5, 0.0])
    assert not model.training
    assert model(random_images(model, 2))[0].requires_grad
    assert not early(random_images(model, 2))[0].requires_grad
    with pytest.raises(UserError, match="EarlyExit supports inference only; train the wrapped model"):
        early.train()
    assert not early.eval().training
    model.train()
    with pytest.raises(UserError, match=r"in training mode; call \.eval\(\) on it first"):
        early(random_images(model, 2))


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ([0.5], "thresholds has 1 numbers, the model has 2 exits; give one per exit"),
        ([0.5, 0.5, 0.5], "thresholds has 3 numbers, the model has 2 exits"),
        ([math.nan, 0.0], "NaN is not a threshold"),
        (["high", 0.0], "it must be a list of numbers, one per exit"),
        (None, "thresholds is not given, and none came with the model's weights"),
        (0.5, "thresholds=0.5; it must be a list of numbers"),
    ],
)
def test_thresholds_that_do_not_fit(thresholds: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EarlyExit(exit_model("nano"), thresholds)


def test_models_that_have_no_exits() -> None:
    with pytest.raises(UserError, match="vit_nano_patch2_8 has no exits to leave at; use a model with exits"):
        EarlyExit(vitfast.create_model("vit_nano_patch2_8"), [0.5, 0.0])
    with pytest.raises(UserError, match="Linear has no exits"):
        EarlyExit(torch.nn.Linear(2, 2), [0.5, 0.0])
    with pytest.raises(UserError, match=r"dvt_nano_16 has no heads \(num_classes=0\)"):
        EarlyExit(exit_model("nano", num_classes=0), [0.5, 0.0])


def test_images_that_do_not_fit(three_exits: DVT) -> None:
    with pytest.raises(ValueError, match="images"):
        EarlyExit(three_exits, [0.5, 0.5, 0.0])(torch.zeros(1, 3, 8, 8))
