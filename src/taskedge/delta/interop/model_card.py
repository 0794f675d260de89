"""The model card of a merged folder: what was trained on which base, from the provenance of the delta."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taskedge.delta.interop.export import Source

PIPELINES = {
    "text-classification": "text-classification",
    "text-regression": "text-classification",
    "multi-label-classification": "text-classification",
    "image-classification": "image-classification",
    "text-generation": "text-generation",
}
"""The name of each kind of task on the hub."""


def model_card(source: Source) -> str:
    """Return the card, Markdown with a YAML header as the hub reads it.

    Everything in it is from the delta. It states no license: that of the base applies, and the card says so.
    """
    delta, provenance = source.delta, source.delta.provenance
    header = {"library_name": "transformers", "tags": ["taskedge"]}
    if source.base and not Path(source.base).is_absolute():
        header["base_model"] = source.base  # a path of the machine that trained it is nobody else's business
    if provenance.task in PIPELINES:
        header["pipeline_tag"] = PIPELINES[provenance.task]
    base = source.base if "base_model" in header else Path(source.base).name
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()), "---", ""]
    lines += [f"# {base or 'A model'}, tuned for {provenance.task or 'a task'}", ""]
    lines += [
        f"The values of a taskedge delta are merged into the weights of the base ({base or 'not named'}). The license "
        "and the limits of the base apply. This card is generated from the delta, and says nothing about accuracy: "
        "measure it on your own data.",
        "",
    ]
    rows = [("task", provenance.task or "not named")]
    if provenance.labels:
        rows.append(("labels", ", ".join(provenance.labels)))
    share = f" ({delta.num_entries / provenance.base_parameters:.4%} of the base)" if provenance.base_parameters else ""
    if delta.num_entries:
        rows.append(("changed weights", f"{delta.num_entries:,}{share}"))
        rows.append(("selected by", f"rule {provenance.rule}, allocation {provenance.allocation}"))
    if delta.low_rank:
        rows.append(
            ("low-rank products", f"{delta.num_low_rank_parameters:,} parameters in {len(delta.low_rank)} linears")
        )
    if delta.full_parameters:
        rows.append(("trained in full", f"{delta.num_full_parameters:,}: {', '.join(sorted(delta.full_parameters))}"))
    rows += [(key.replace("_", " "), _plain(value)) for key, value in provenance.training.items() if _is_setting(value)]
    cells = [(name, text.replace("|", "\\|").replace("\n", " ")) for name, text in rows]
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in cells), ""]
    return "\n".join(lines)


def _is_setting(value: Any) -> bool:
    """Return whether a value is a plain one that names no path."""
    if isinstance(value, str):
        return not Path(value).is_absolute() and len(value) < 80
    return isinstance(value, bool | int | float)


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
