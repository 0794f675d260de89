"""Seconds of a training step over the cut on emulated links, against the prediction: MiniLM-L6, 8 texts of 32 tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.cooperation.cut_links  # about five quiet minutes; resumable

In every second step the link sleeps for the delay of a round trip and for the bytes of each request and its answer,
headers included. The steps between, on a link with a delay of 1 ms, give the computing of both ends under the same load
of the machine: without any sleep a step is some hundredths of a second shorter, as no process wakes with cold caches.
The prediction adds to their median, less the delays, the closed form of the bytes, the headers and the round trips. A
step is measured from one pass to the next, so joining and choosing weights are not in it. The first is left out.

For comparison: a round of cooperation has the bytes of ``cooperation_bytes.json`` (deft, float8) and no computing here;
sending the data means sending the texts of the batch once, in UTF-8.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from benchmarks.cooperation.cut_setting import (
    MESSAGES_OF_PASSES,
    WAYS,
    Cut,
    bytes_of_passes,
    minilm_groups,
    write_texts,
)
from benchmarks.record import BENCHMARKS, TEST_HELPERS, results, write
from taskedge.cooperation.cut.cut_plan import StatedLink, plan_step
from taskedge.cooperation.protocol.message import Message, MessageLimits
from taskedge.cooperation.transport.links import CoordinatorLink

sys.path.insert(0, str(TEST_HELPERS))
from wrapped_link import NO_LIMITS, WrappedLink

RESULTS = ("cut_links.json",)
ROWS, TOKENS, STEPS = 8, 32, 9
LINKS = [(mbit, delay) for mbit in (10, 100) for delay in (5, 20, 80)]
RUNS = [("32 rows x 32 columns", "fp32"), ("32 rows x 32 columns", "int8")]
BAR = 0.1
NEAR = StatedLink(1e12, 0.001)


@dataclass
class SlowLink(WrappedLink):
    """The cloud's end of a link that takes the time of a real one."""

    stated: StatedLink
    passes: list[float] = field(default_factory=list)
    """When each pass had come, and the end of the last."""

    async def request(
        self, device: str, message: Message, seconds: float, limits: MessageLimits = NO_LIMITS
    ) -> Message:
        """Send a request and wait as long as it and its answer need."""
        answer = await super().request(device, message, seconds, limits)
        crossed = len(message.pack()) + len(answer.pack())
        if message.kind in MESSAGES_OF_PASSES["down"] or answer.kind == "pass":  # others are of joining
            if answer.kind == "pass":
                self.passes.append(time.monotonic())
            link = NEAR if len(self.passes) % 2 else self.stated
            await asyncio.sleep(link.seconds(crossed, 1))
        if answer.kind == "done":
            self.passes.append(time.monotonic())
        return answer


def step_seconds(cut: Cut, way: str, coding: str, stated: StatedLink) -> tuple[list[float], list[float], float]:
    """Return the seconds of steps on the stated link and on the near one, and the bytes of a step."""
    texts = write_texts(cut.folder, ROWS, TOKENS)
    config = cut.config(texts, batch_size=ROWS, max_length=TOKENS, epochs=float(STEPS), **WAYS[way])
    links: list[SlowLink] = []

    def wrap(link: CoordinatorLink) -> CoordinatorLink:
        links.append(SlowLink(link, stated))
        return links[0]

    done = cut.run(config, wrap, coding=coding)
    steps = [later - earlier for earlier, later in pairwise(links[0].passes)]
    return steps[1::2], steps[2::2], sum(bytes_of_passes(done).values()) / STEPS


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rounds = json.loads((BENCHMARKS / "cooperation/results/cooperation_bytes.json").read_text())["figures"]
    of_round = {way: 1000 * next(f["median"] for f in rounds if f["what"].startswith(way)) for way in ("down", "up")}
    path = results("cooperation") / "cut_links.json"
    lines: list[dict[str, Any]] = json.loads(path.read_text())["details"]["runs"] if path.exists() else []
    known = {(line["what"], line["coding"], line["mbit_per_second"], line["delay_ms"]) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        cut = Cut(Path(folder))
        texts = write_texts(Path(folder), ROWS, TOKENS).stat().st_size
        for (way, coding), (mbit, delay) in product(RUNS, LINKS):
            if (way, coding, mbit, delay) in known:
                continue
            plan = plan_step(minilm_groups(way), ROWS * TOKENS, 384, coding)
            stated = StatedLink(1e6 * mbit, delay / 1000)
            slow, fast, crossed = step_seconds(cut, way, coding, stated)
            seconds, near = statistics.median(slow), statistics.median(fast)
            computing = near - NEAR.seconds(crossed, plan.round_trips)
            framing = round((crossed - plan.step_bytes) / plan.round_trips)
            predicted = StatedLink(1e6 * mbit, delay / 1000, computing, framing).seconds(
                plan.step_bytes, plan.round_trips
            )
            line = {
                **{"what": way, "coding": coding, "mbit_per_second": mbit, "delay_ms": delay},
                **{"seconds": seconds, "predicted": predicted, "over_prediction": seconds / predicted - 1},
                **{"slow_steps": slow, "near_steps": fast, "computing_seconds": computing},
                **{"step_bytes": crossed, "round_trips": plan.round_trips},
                "round_of_cooperation_seconds": stated.seconds(round(sum(of_round.values())), 1),
                "sending_the_texts_seconds": stated.seconds(texts, 1),
            }
            lines.append(line)
            print(line, flush=True)
            save(lines, texts, of_round)
    worst = max(abs(line["over_prediction"]) for line in lines)
    print(f"largest difference from the prediction {worst:.1%}: {'met' if worst <= BAR else 'MISSED'}")


def save(lines: list[dict[str, Any]], texts: int, of_round: dict[str, float]) -> None:
    """Write the result so far."""
    worst = max(abs(line["over_prediction"]) for line in lines)
    write(
        "cooperation",
        "cut_links",
        {
            "setting": f"MiniLM-L6, all linears, {ROWS} texts of {TOKENS} tokens",
            "runs": lines,
            "texts_bytes": texts,
            "round_bytes": of_round,
            "largest_difference": {"value": worst, "bar": BAR, "met": worst <= BAR},
        },
    )


if __name__ == "__main__":
    main()
