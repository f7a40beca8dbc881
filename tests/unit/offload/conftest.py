import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Several threads gain nothing at a test's sizes, and wait for each other where other tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
