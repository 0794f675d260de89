"""The export ``merged``: a plain model folder with the delta's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskedge.delta.interop.export import MODEL, Source, exports
from taskedge.delta.interop.model_card import model_card
from taskedge.delta.interop.read_back import merged_reader
from taskedge.errors import InputError


@exports("merged", makes=MODEL, loads="{auto}.from_pretrained({path!r})", reads=merged_reader, tolerance=1e-6)
def merged(source: Source, path: Path) -> dict[str, Any]:
    """A plain model folder: `from_pretrained` loads it, without taskedge, and gives the same bits.

    Raises:
        InputError: the model is not a Hugging Face model, so it has no folder format.
    """
    from transformers import PreTrainedModel, logging

    if not isinstance(source.model, PreTrainedModel):
        raise InputError(
            f"{type(source.model).__name__} is not a Hugging Face model, so it has no folder format: apply the delta "
            "and save its state_dict instead"
        )
    logging.disable_progress_bar()
    source.model.save_pretrained(path)
    if source.processor is not None:
        source.processor.save_pretrained(path)
    (path / "README.md").write_text(model_card(source), encoding="utf-8")
    return {}
