import torch

from fedimaging.privacy.clipping.replay import HostWatch


def test_reading_the_host_is_noticed() -> None:
    """A device without numbers stands for a GPU: what counts is that two devices meet in one operation."""
    with HostWatch() as watch:
        torch.ones(3).to("meta")
    assert watch.host_was_read


def test_work_on_one_device_is_not_taken_for_it() -> None:
    there = torch.ones(3, device="meta", requires_grad=True)
    with HostWatch() as watch:
        (there * 2).sum().backward()
        (torch.ones(3) + 1).sum()
    assert not watch.host_was_read
