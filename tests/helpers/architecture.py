"""The rules of the source tree: which folder may import which, and what the import graph looks like.

``python tests/helpers/architecture.py`` writes the table of folders into CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "taskedge"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


@dataclass(frozen=True)
class Folder:
    """One folder (or top-level module) of the package, what lives there, and what it may import."""

    name: str
    content: str
    imports: tuple[str, ...] = ()

    @property
    def allowed(self) -> set[str]:
        """Folders it may import, itself and the foundation included."""
        return {self.name, *FOUNDATION, *self.imports}


FOUNDATION = ("errors", "registry", "io")
LIBRARY = ("backbone", "selection", "forms", "delta")

FOLDERS = {
    folder.name: folder
    for folder in (
        Folder("errors", "exceptions and their exit codes"),
        Folder("registry", "things registered by name: rules, forms, kernels, solvers, task kinds"),
        Folder("io", "the atomic write, and the container under every file format"),
        Folder("backbone", "what is known of a base model: layers, blocks, loading, costs, weight storage"),
        Folder("selection", "statistics, rules, allocations, supports", ("backbone",)),
        Folder("forms", "how a change is parameterized: sparse, sparse LoRA, low rank; kernels", LIBRARY[:2]),
        Folder("delta", "the trained change as a file: extract, save, load, apply, export", LIBRARY[:3]),
        Folder("profiling", "what a training step costs on this machine", LIBRARY[:3]),
        Folder("reporting", "plain values as tables and pictures", ("profiling",)),
        Folder(
            "training",
            "one run of `tune`: data, tasks, the loop, checkpoints, memory",
            (*LIBRARY, "profiling", "reporting"),
        ),
        Folder(
            "serving",
            "many tasks over one base: batches of mixed tasks, task files, the HTTP server",
            (*LIBRARY, "training"),
        ),
        Folder("planning", "fleet file, costs, solvers: arrays in, plan out, no torch", ("backbone", "profiling")),
        Folder(
            "placement",
            "which tensors live in which memory of a chip: costs, solvers, read faults",
            (*LIBRARY, "profiling", "planning"),
        ),
        Folder(
            "cooperation",
            "rounds over many devices: protocol, transport, scheduling, devices, coordinator, fleet",
            (*LIBRARY, "profiling", "training", "planning"),
        ),
        Folder(
            "demo",
            "the demo, and the models and data of demo, tests and benchmarks",
            (*LIBRARY, "profiling", "reporting", "training"),
        ),
        Folder("cli", "one module a verb, imported when the verb is called"),
        Folder("__main__", "`python -m taskedge`", ("cli",)),
    )
}
"""Lowest first: a folder imports only folders above it. ``cli`` imports everything; nothing imports it."""

COOPERATION = ("protocol", "transport", "scheduling", "device", "coordinator", "fleet", "flower", "cut")
"""Folders of ``cooperation``, lowest first: each imports only the ones before it."""

IN_COOPERATION = {
    "protocol": (),
    "transport": ("protocol",),
    "scheduling": ("protocol", "transport"),
    "device": ("protocol", "transport", "scheduling"),
    "coordinator": ("protocol", "transport", "scheduling", "device"),
    "fleet": ("protocol", "transport", "scheduling", "device", "coordinator"),
    "flower": ("protocol", "transport", "scheduling", "device", "coordinator", "fleet"),
    "cut": ("protocol", "transport", "scheduling", "device", "fleet"),
}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("taskedge", *parts)).removesuffix(".__init__")


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    return {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported(path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Yield (line, module) for each import of the package's own modules, those under TYPE_CHECKING included.

    ``from taskedge.x import y`` is an import of ``taskedge.x.y`` where that is a module, else of ``taskedge.x``;
    ``import taskedge`` is an import of ``taskedge``.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write the absolute name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "taskedge":
                continue
            while name not in known:
                name = name.rpartition(".")[0]
            yield node.lineno, name


def graph() -> dict[str, set[str]]:
    """Return the modules that each module imports, without the package's ``__init__``, which only re-exports."""
    known = modules()
    return {
        name: {target for _, target in imported(path, known)} - {name, "taskedge"}
        for name, path in known.items()
        if name != "taskedge"
    }


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of two or more modules (Tarjan, iterative)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    for start in edges:
        if start in index:
            continue
        work = [(start, iter(sorted(edges[start])))]
        index[start] = low[start] = len(index)
        stack.append(start)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    work.append((target, iter(sorted(edges.get(target, ())))))
                    break
                if target in stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        component.append(stack.pop())
                        if component[-1] == node:
                            break
                    if len(component) > 1:
                        found.append(sorted(component))
    return found


def folder_of(module: str) -> str:
    """Return the folder (or top-level module) that a module belongs to."""
    return module.split(".")[1]


def table() -> str:
    """Return the table of folders as Markdown."""
    rows = ["| folder of `src/taskedge` | content | may import |", "|---|---|---|"]
    for folder in FOLDERS.values():
        if folder.name == "cli":
            imports = "everything; nothing imports it"
        elif folder.name in ("errors",):
            imports = "nothing of the package"
        else:
            imports = ", ".join(folder.imports) or "foundation only"
        name = folder.name if (SOURCE / f"{folder.name}.py").exists() else f"{folder.name}/"
        rows.append(f"| `{name}` | {folder.content} | {imports} |")
    rows += ["", f"Every folder may also import the foundation: {', '.join(f'`{name}`' for name in FOUNDATION)}."]
    inner = " ← ".join(f"`{name}/`" for name in COOPERATION)
    return "\n".join([*rows, f"Inside `cooperation/`: {inner}; a folder imports only folders to its left."])


def write_table() -> None:
    """Write the table between its markers in CONTRIBUTING.md."""
    page = CONTRIBUTING.read_text(encoding="utf-8")
    block = f"<!-- table:rooms -->\n{table()}\n<!-- end -->"
    CONTRIBUTING.write_text(
        re.sub(r"<!-- table:rooms -->.*?<!-- end -->", lambda _: block, page, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    write_table()
