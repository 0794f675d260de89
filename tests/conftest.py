"""What every test gets: one seed, one thread, the same examples each time, and no network."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
import tiny
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "taskedge",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("taskedge")
torch.set_num_threads(1)  # for fixtures of a module, too: a fork hangs where its parent has computed with several


@pytest.fixture(autouse=True, scope="module")
def collected():
    """Keep what is imported by now out of later collections of garbage: each would search all of torch again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=sorted(tiny.MODELS))
def model(request):
    """One of each kind of model."""
    return tiny.MODELS[request.param]()


@pytest.fixture
def bert():
    return tiny.bert()


@pytest.fixture
def mlp():
    return tiny.mlp()
