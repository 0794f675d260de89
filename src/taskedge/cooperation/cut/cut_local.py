"""Both ends of the cut in one process, over a link in memory: to try it, to test it, and to count what would cross.

Random numbers are the process' own for both ends, so that dropout draws as in one model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskedge.cooperation.cut.base_parts import PartsStore, write_parts
from taskedge.cooperation.cut.cloud import Cloud, CloudLimits
from taskedge.cooperation.cut.cloud_base import CloudBase, load_cloud_base
from taskedge.cooperation.cut.conversation import Conversation, LoopThread
from taskedge.cooperation.cut.cut_run import CutResult, outgoing_noise, train_over_cut
from taskedge.cooperation.cut.cut_settings import CutSettings
from taskedge.cooperation.cut.device_end import DeviceEnd
from taskedge.cooperation.cut.noise import OutgoingNoise
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.cooperation.transport.links import CoordinatorLink, Traffic
from taskedge.training.tasks import Log
from taskedge.training.tune_config import TuneConfig

DEVICE = "local"
Wrap = Callable[[CoordinatorLink], CoordinatorLink]


@dataclass(frozen=True)
class LocalCut:
    """The result of a run, and the traffic to and from the device.

    Attributes:
        result: of the device.
        down, up: bytes and messages by kind.
    """

    result: CutResult
    down: Traffic
    up: Traffic


def cut_local(
    config: TuneConfig,
    settings: CutSettings,
    *,
    base: CloudBase | None = None,
    limits: CloudLimits | None = None,
    wrap: Wrap | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    log: Log = print,
) -> LocalCut:
    """Train over the cut with both ends in this process.

    Args:
        config: settings of ``tune``; ``model`` names the cloud's base.
        settings: those of the cut.
        base: the loaded base; None: it is loaded.
        limits: of the cloud.
        wrap: wraps the cloud's end of the link, such as to emulate a slow one.
        resume, force, progress, log: see :func:`taskedge.cooperation.cut.cut_run.train_over_cut`.
    """
    with both_ends(config, settings, base=base, limits=limits, wrap=wrap, log=log) as ends:
        result = train_over_cut(
            config,
            settings,
            ends.end,
            ends.store,
            resume=resume,
            force=force,
            progress=progress,
            noise=ends.noise,
            log=log,
        )
        down, up = ends.link.traffic(DEVICE)
        return LocalCut(result, down, up)


@dataclass(frozen=True)
class BothEnds:
    """A cloud that serves, and the device's end.

    Attributes:
        end, store: of the device.
        noise: what ``end`` does to messages that tell of the data.
        link: the cloud's end.
    """

    end: DeviceEnd
    store: PartsStore
    noise: OutgoingNoise | None
    link: MemoryCoordinatorLink


@contextmanager
def both_ends(
    config: TuneConfig,
    settings: CutSettings,
    *,
    base: CloudBase | None = None,
    limits: CloudLimits | None = None,
    wrap: Wrap | None = None,
    log: Log = print,
) -> Iterator[BothEnds]:
    """Serve a cloud in this process inside the block. For the arguments see :func:`cut_local`."""
    base = base or load_cloud_base(config.model, log=log)
    with tempfile.TemporaryDirectory(prefix="taskedge-cut-") as scratch, LoopThread() as loop:
        parts = write_parts(config.model, base.stack, len(base.blocks), Path(scratch) / "cloud")
        store, conversation = PartsStore(Path(scratch) / "device"), Conversation(settings.patience)
        noise = outgoing_noise(settings)
        end = DeviceEnd(conversation, store, coding=settings.coding, seed=config.seed, noise=noise, log=log)

        async def link() -> MemoryCoordinatorLink:
            return MemoryCoordinatorLink()

        memory: MemoryCoordinatorLink = loop.run(link())
        cloud = Cloud(memory if wrap is None else wrap(memory), base, parts, limits, own_random=False, log=log)
        loop.start(cloud.serve(), conversation.end)

        async def serve() -> None:
            await memory.device(DEVICE).serve(conversation.handle)

        loop.start(serve(), conversation.end)
        yield BothEnds(end, store, noise, memory)
