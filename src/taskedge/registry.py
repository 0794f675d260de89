"""Things found by name: selection rules, allocations, kernels, solvers.

A registered thing is one file in one folder and one decorator. The folder is read the first time
a name is asked for, so adding a thing touches no other file.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from taskedge.errors import UnknownName

Thing = TypeVar("Thing")


class Registry(Generic[Thing]):
    """A mapping from names to things of one kind, filled by the modules of one package."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._things: dict[str, Thing] = {}
        self._families: dict[str, Callable[[str], Thing | None]] = {}
        self._read = self._reading = False
        self._lock = threading.RLock()

    def add(self, name: str, thing: Thing) -> Thing:
        """Registers ``thing``; a name can be taken once."""
        if name in self._things:
            raise ValueError(f"the {self.kind} {name!r} is registered twice")
        self._things[name] = thing
        return thing

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """Decorator form of :meth:`add`."""
        return lambda thing: self.add(name, thing)

    def add_family(self, title: str, member: Callable[[str], Thing | None]) -> None:
        """Registers things whose names follow a pattern: ``member`` makes the one of a name, or None for other names.

        ``title`` stands for all their names where names are listed, such as ``"N:M"``.
        """
        self._families[title] = member

    @property
    def titles(self) -> list[str]:
        """The names, and the titles of the families after them: all there is to tell a reader."""
        return [*self, *sorted(self._families)]

    def __getitem__(self, name: str) -> Thing:
        self._fill()
        if name in self._things:
            return self._things[name]
        for member in self._families.values():
            if (thing := member(name)) is not None:
                return thing
        raise UnknownName(self.kind, name, self.titles)

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(sorted(self._things))

    def __contains__(self, name: object) -> bool:
        self._fill()
        return name in self._things

    def _fill(self) -> None:
        if self._read:
            return
        with self._lock:  # other threads wait until all is there; what is imported may ask, and gets what there is
            if self._read or self._reading:
                return
            self._reading = True
            try:
                package = importlib.import_module(self._package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self._package}.{module.name}")
                self._read = True
            finally:
                self._reading = False
