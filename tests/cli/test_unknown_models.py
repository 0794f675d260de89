"""A model that does not exist costs every verb one request to the hub: none retries."""

from __future__ import annotations

import time

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import get_session


@pytest.fixture
def requests(monkeypatch):
    """Let the hub be asked, over a network that is down. Return the addresses that are requested."""
    session, addresses = get_session(), []

    def request(*args, **kwargs):
        addresses.append(next(str(value) for value in (*args, *kwargs.values()) if "://" in str(value)))
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for method in ("request", "send", "stream", "get", "head"):
        monkeypatch.setattr(session, method, request)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    return addresses


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "measure --model no-such/model",
        "bench device --model no-such/model",
        "plan --fleet fleet.toml --model no-such/model",
        "simulate --fleet fleet.toml --model no-such/model",
        "tune --model no-such/model --train train.csv",
        "tune --model no-such/model --train train.csv --dry-run",
        "estimate --model no-such/model --train train.csv",
    ],
)
def test_an_unknown_model(taskedge, planning, monkeypatch, requests, line):
    monkeypatch.chdir(planning)
    (planning / "train.csv").write_text("text,label\ngood,pos\nbad,neg\nfine,pos\nawful,neg\n")
    ended = taskedge(*line.split())
    assert ended.code == 2
    told = "taskedge: no-such/model: there is no such folder, and the hub does not give a model of that name: "
    assert told in ended.err
    assert [address for address in requests if "no-such" in address] == [
        "https://huggingface.co/api/models/no-such/model"
    ]


@pytest.mark.parametrize("line", ["measure --model ./nothere", "bench device --model ./nothere"])
def test_a_folder_that_does_not_exist(taskedge, here, requests, line):
    ended = taskedge(*line.split())
    assert (ended.code, requests) == (2, [])
    assert "./nothere: no such folder: name a local model folder or a hub id" in ended.err
