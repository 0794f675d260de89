"""Registries: selection rules, allocations, kernels, solvers and exports by name.

A registered object is one function or class and one decorator. A registry knows the module or package that has the
built-in objects and imports it when a name is first looked up, so adding an object touches no other file.
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
    """A mapping from names to objects of one kind.

    Args:
        kind: noun for messages, such as ``"rule"``.
        module: module that registers the built-in objects when it is imported; of a package, all its modules.
    """

    def __init__(self, kind: str, module: str) -> None:
        self.kind = kind
        self._module = module
        self._things: dict[str, Thing] = {}
        self._families: dict[str, Callable[[str], Thing | None]] = {}
        self._deprecated: dict[str, str] = {}
        self._filled = self._filling = False
        self._lock = threading.RLock()

    def add(self, name: str, thing: Thing) -> Thing:
        """Register ``thing`` and return it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._things:
            raise ValueError(f"the {self.kind} {name!r} is registered twice")
        self._things[name] = thing
        return thing

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """Return a decorator that registers under ``name``."""
        return lambda thing: self.add(name, thing)

    def add_family(self, title: str, member: Callable[[str], Thing | None]) -> None:
        """Register all objects whose names follow a pattern.

        Args:
            title: stands for the names in lists, such as ``"N:M"``.
            member: returns the object of a name, or None for names outside the pattern.
        """
        self._families[title] = member

    def deprecate(self, old: str, new: str) -> None:
        """Let ``old``, a name of earlier versions that lists do not show, stand for ``new``."""
        self._deprecated[old] = new

    def current_name(self, name: str) -> str:
        """Return the present name of a name, which may be deprecated or unknown."""
        self._fill()
        return self._deprecated.get(name, name)

    @property
    def titles(self) -> list[str]:
        """All names, then the titles of the families."""
        return [*self, *sorted(self._families)]

    def __getitem__(self, name: str) -> Thing:
        name = self.current_name(name)
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
        """Import the module, or all modules of the package, once.

        Other threads wait until the registry is complete. Modules that are being imported may look up names, and see
        what has been registered so far.
        """
        if self._filled:
            return
        with self._lock:
            if self._filled or self._filling:
                return
            self._filling = True
            try:
                module = importlib.import_module(self._module)
                for submodule in pkgutil.iter_modules(getattr(module, "__path__", ())):
                    importlib.import_module(f"{self._module}.{submodule.name}")
                self._filled = True
            finally:
                self._filling = False
