"""Which layers of a model a task changes: one line for each block, from the input to the output."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def open_layers_text(
    is_open: Collection[tuple[str, str]],
    closed: Collection[tuple[str, str]],
    blocks: Sequence[str],
    kinds: Sequence[str],
) -> str:
    """Return a drawing of the layers with open and closed gates, one line for each block.

    Args:
        is_open, closed: (block, kind) of the layers.
        blocks: all blocks, from the input to the output.
        kinds: all kinds, in the order of a block.
    """
    total = len(is_open) + len(closed)
    width = max(map(len, blocks))
    lines = [f"open layers by depth, {len(is_open)} of {total}, from the input to the output (# open, . closed)"]
    for block in blocks:
        row = "".join("#" if (block, kind) in is_open else "." if (block, kind) in closed else " " for kind in kinds)
        opened = sum((block, kind) in is_open for kind in kinds)
        present = opened + sum((block, kind) in closed for kind in kinds)
        lines.append(f"  {block:{width}}  {row}  {opened} of {present}")
    lines.append("  in each line: " + ", ".join(kinds))
    return "\n".join(lines)
