"""What of a file is in this process's memory, as the kernel tells it."""

from __future__ import annotations

import re
from pathlib import Path


def resident(path: Path) -> int:
    """kB, clean or not."""
    after = Path("/proc/self/smaps").read_text().split(str(path), 1)[1]
    return int(re.search(r"^Rss:\s+(\d+) kB", after, re.MULTILINE).group(1))
