"""Reports of infinity and NaN that a rounding hides."""

from __future__ import annotations

import pytest
import torch

from vitfast.quantization.rounders import DeviceFlag, has_non_finite


class FakeEvent:
    """An event that has happened when the test says so."""

    happened = False

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        return self.happened


def test_flags_on_a_gpu_are_read_without_waiting_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    flag = DeviceFlag()
    monkeypatch.setattr(FakeEvent, "happened", False)
    # the second flag is set while the copy of the first is in flight
    assert [flag.add(torch.tensor(value)) for value in (False, True, False)] == [False, False, False]
    monkeypatch.setattr(FakeEvent, "happened", True)
    # the first copy ends without a flag, the second one holds it, the third one does not
    assert [flag.add(torch.tensor(False)) for _ in range(3)] == [False, True, False]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_non_finite_elements_are_found(value: float, dtype: torch.dtype) -> None:
    x = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert not has_non_finite(x)
    assert not has_non_finite(x[:0])
    x[1, 2] = value
    assert has_non_finite(x)
