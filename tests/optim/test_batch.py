"""Numbers on the device of a step."""

from __future__ import annotations

import pytest
import torch

from gradalign.optim.batch import DeviceScalars


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


@pytest.mark.usefixtures("capturing")
def test_a_rate_on_the_host_is_refused_while_a_graph_is_captured():
    words = r"expected a setting that is a tensor .* on cuda while .*; got one on cpu; make it with torch.tensor"
    with pytest.raises(ValueError, match=words):
        DeviceScalars()(torch.tensor(0.1), torch.device("cuda"))


@pytest.mark.usefixtures("capturing")
def test_a_rate_for_tensors_on_the_host_is_not_looked_at():
    rate = torch.tensor([0.1])
    made = DeviceScalars()(rate, torch.device("cpu"))
    assert made.shape == ()
    assert made.data_ptr() == rate.data_ptr()


def test_numbers_are_made_once():
    scalars = DeviceScalars()
    device = torch.device("cpu")
    assert scalars(0.5, device) is scalars(0.5, device)
    assert scalars(0.5, device).dtype == torch.float64
    assert scalars(3, device, torch.int64).dtype == torch.int64
