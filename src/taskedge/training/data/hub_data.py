"""Data sets of the Hugging Face hub by name, and folders of such data sets: ``imdb:train``, ``glue@sst2:validation``.

A name is that of an organization and a data set, or of a data set; then, if there are several, ``@`` and the
configuration, and ``:`` and the split. The same endings after the path of a folder name one that was downloaded from
the hub, or written by ``save_to_disk``. The ``datasets`` library reads both; code in a data set is never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.errors import InputError, TaskEdgeError, did_you_mean
from taskedge.training.data.file_text import FileContent

DEFAULT_SPLIT = "train"
TIMEOUT_SECONDS = 10

_NAME = re.compile(r"(?P<place>[^@:]+)(?:@(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class HubName:
    """A data set by name.

    Attributes:
        place: the name on the hub, or a folder.
        config: the configuration; None for the only one.
        split: the split; None for the default one.
    """

    place: str
    config: str | None
    split: str | None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.place).is_dir()


def parse_hub_name(path: Path, suffixes: Sequence[str]) -> HubName | None:
    """Return the data set that a path names; None if it can only be a file.

    Args:
        path: as the user gave it. An existing file or folder is no name.
        suffixes: of table files, which end no name.
    """
    match = None if path.exists() else _NAME.fullmatch(path.as_posix())
    if match is None:
        return None
    found = HubName(match["place"], match["config"], match["split"])
    if found.is_folder:
        return found
    organization, slash, _ = found.place.partition("/")
    stem = found.place.lower().removesuffix(".gz")
    looks_like_a_file = stem.endswith(tuple(suffixes)) or (slash and Path(organization).is_dir())
    if not slash and found == HubName(found.place, None, None):
        looks_like_a_file = looks_like_a_file or bool(path.suffix)
    return None if looks_like_a_file or not _HUB_NAME.fullmatch(found.place) else found


def read_hub(path: Path, name: HubName) -> FileContent:
    """Return the columns of a data set's split.

    Class names of the data set stand for the numbers of its labels; -1 stands for no label.

    Raises:
        InputError: there is no such data set, configuration or split, it cannot be loaded, or there is no network.
    """
    with _explained(path, name):
        splits = _load(path, name)
    split = _chosen(path, name.split, list(splits))
    data = splits[split]
    others = [other for other in splits if other != split]
    of_all = f" (others: {', '.join(map(repr, others))})" if others else ""
    where = "folder" if name.is_folder else "hub"
    return FileContent(
        list(data.column_names),
        lambda index: _values(path, data, data.column_names[index]),
        f"a data set of the {where}, split {split!r}{of_all}",
    )


def _load(path: Path, name: HubName) -> Mapping[str, Any]:
    """Return the splits of a data set."""
    import datasets

    if name.is_folder:
        folder = Path(name.place)
        if (folder / "dataset_dict.json").exists():
            return dict(datasets.load_from_disk(str(folder)))
        if (folder / "state.json").exists():
            return {DEFAULT_SPLIT: datasets.load_from_disk(str(folder))}
    else:
        _ask_hub(name.place)
    configs = datasets.get_dataset_config_names(name.place)
    if name.config is None and len(configs) > 1 and "default" not in configs:
        raise InputError(
            f"{path}: it has the configurations {', '.join(configs)}: name one, as in {name.place}@{configs[0]}"
        )
    if name.config is not None and name.config not in configs:
        raise InputError(
            f"{path}: no configuration {name.config!r}{did_you_mean(name.config, configs)} (there are: "
            f"{', '.join(configs)})"
        )
    return dict(datasets.load_dataset(name.place, name.config))


def _ask_hub(name: str) -> None:
    """Query the hub once for a data set: the loader would retry for half a minute. A cached one needs no answer."""
    import datasets
    from huggingface_hub import HfApi

    if datasets.config.HF_HUB_OFFLINE or _is_cached(name):
        return
    HfApi().dataset_info(name, timeout=TIMEOUT_SECONDS)


def _is_cached(name: str) -> bool:
    import datasets

    return (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir()


@contextmanager
def _explained(path: Path, name: HubName) -> Iterator[None]:
    """Turn whatever the library and the network raise into messages, and silence progress bars."""
    import datasets

    datasets.disable_progress_bars()
    try:
        yield
    except TaskEdgeError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        if name.is_folder:
            raise InputError(
                f"{path}: the folder cannot be read as a data set ({cause}): it needs files such as train.csv or "
                "data/train-00000.parquet, or to be written by save_to_disk"
            ) from None
        raise InputError(
            f"no file {path}, and the hub does not give a data set of that name ({cause}): correct the name, or, for "
            f"a machine without a network, run 'hf download --repo-type dataset {name.place} --local-dir DIR' on one "
            f"with a network, copy the folder, and name it as DIR:{name.split or DEFAULT_SPLIT}"
        ) from None
    finally:
        datasets.enable_progress_bars()


def _chosen(path: Path, wanted: str | None, splits: Sequence[str]) -> str:
    """Return the split that is named, else ``train``, else the only one."""
    if wanted is not None and wanted not in splits:
        raise InputError(
            f"{path}: no split {wanted!r}{did_you_mean(wanted, splits)} (splits: {', '.join(splits) or 'none'})"
        )
    if wanted is None and DEFAULT_SPLIT not in splits and len(splits) != 1:
        raise InputError(f"{path}: it has the splits {', '.join(splits) or 'none'}: name one, as in {path}:{splits[0]}")
    return wanted or (DEFAULT_SPLIT if DEFAULT_SPLIT in splits else splits[0])


def _values(path: Path, data: Any, name: str) -> list[Any]:
    """Return the values of a column, with class names in place of numbers."""
    import datasets

    feature = data.features[name]
    if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
        raise InputError(
            f"{path}: column {name!r} holds {type(feature).__name__.lower()} data, which is not read from a data set: "
            "save the files, and name a folder or a table of their paths"
        )
    values = list(data[name])
    if isinstance(feature, datasets.ClassLabel):
        class_names = dict(enumerate(feature.names))
        return [class_names.get(value) for value in values]
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):  # such as tags of tokens
        class_names = dict(enumerate(inner.names))
        return [None if value is None else [class_names.get(each) for each in value] for value in values]
    return values
