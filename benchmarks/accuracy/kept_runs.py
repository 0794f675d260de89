"""Trained values of trials, so that a winner that ran as a trial needs no second training for its test rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn


class KeptRuns:
    """Parameters with ``requires_grad`` after a run, one file a run, in the folder of temporary files.

    They are kept by what names the run, so that a sweep that was killed finds them again, and last until
    :meth:`forget`.

    Args:
        about: what the runs have in common: the results file and the machine.
    """

    def __init__(self, about: str) -> None:
        key = sha256(about.encode()).hexdigest()[:16]
        self.folder = Path(tempfile.gettempdir()) / f"taskedge-kept-runs-{key}"

    def keep(self, run: Mapping[str, Any], model: nn.Module) -> None:
        """Save the trained values."""
        self.folder.mkdir(exist_ok=True)
        trained = {n: p.detach().clone().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        unfinished = self._path(run).with_suffix(".unfinished")
        save_file(trained, unfinished)
        unfinished.rename(self._path(run))

    def has(self, run: Mapping[str, Any]) -> bool:
        """Return whether the values of a run are kept."""
        return self._path(run).exists()

    def restore(self, run: Mapping[str, Any], model: nn.Module) -> None:
        """Set the parameters of a model that was made ready for the run to the trained values."""
        trained = load_file(self._path(run))
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert parameters.keys() == trained.keys(), "the model was made ready for another run"
        for name, value in trained.items():
            parameters[name].data.copy_(value)

    def forget(self, method: str | None = None) -> None:
        """Delete the values of all runs of a method, or of all methods."""
        for path in self.folder.glob("*" if method is None else f"{_stem(method)}-*"):
            path.unlink()

    def _path(self, run: Mapping[str, Any]) -> Path:
        return self.folder / f"{_stem(run['method'])}-{_stem(dict(run))}.safetensors"


def _stem(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
