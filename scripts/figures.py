"""The style figures of src/imagegen: printed by `make check`, which fails where one leaves its bounds.

A function's length is the number of lines from its `def` to its end, signature included, docstring and decorators not.
"""

import ast
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_LENGTH = 60

LOCKS = {f"{module}.{name}" for module in ("threading", "asyncio", "multiprocessing") for name in ("Lock", "RLock")}
MUTABLE_DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "deque", "defaultdict", "Counter", "OrderedDict"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Figures:
    """What was counted; `Place`s are `file:line`."""

    files: int = 0
    code_lines: int = 0
    comment_lines: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    unannotated: list[str] = field(default_factory=list)
    locks: list[str] = field(default_factory=list)
    globals: list[str] = field(default_factory=list)
    broad_excepts: list[str] = field(default_factory=list)
    mutable_state: list[str] = field(default_factory=list)

    def add_file(self, path: Path, name: str) -> None:
        """Count one source file."""
        self.files += 1
        self._add_lines(path)
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, Function):
                self._add_function(node, f"{name}:{node.lineno}")
            elif isinstance(node, ast.stmt | ast.expr | ast.excepthandler):
                self._add_node(node, f"{name}:{node.lineno}")
        self.mutable_state += [f"{name}:{line}" for line in _mutable_state(tree)]

    def _add_lines(self, path: Path) -> None:
        with tokenize.open(path) as file:
            text = file.read()
        self.code_lines += sum(1 for line in text.splitlines() if line.strip())
        tokens = tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__)
        self.comment_lines += sum(token.type == tokenize.COMMENT for token in tokens)

    def _add_function(self, node: Function, place: str) -> None:
        self.lengths[place] = _length(node)
        if node.returns is None:
            self.unannotated.append(place)

    def _add_node(self, node: ast.AST, place: str) -> None:
        if isinstance(node, ast.Global):
            self.globals.append(place)
        elif LOCKS & set(_names(node)):
            self.locks.append(place)
        elif isinstance(node, ast.ExceptHandler) and _is_broad(node):
            self.broad_excepts.append(place)

    def report(self) -> Iterator[str]:
        """The figures, a line each."""
        lengths = sorted(self.lengths.values())
        longest = max(self.lengths, key=self.lengths.__getitem__)
        annotated = 100 * (1 - len(self.unannotated) / len(lengths))
        yield f"files              {self.files}, {self.code_lines} lines that are not blank"
        yield f"functions          {len(lengths)}, {annotated:.4g} % with a return annotation"
        yield (
            f"function length    median {statistics.median(lengths):g}, p90 {lengths[int(0.9 * len(lengths))]}, "
            f"max {lengths[-1]} ({longest}); docstrings not counted"
        )
        yield f"comments           {100 * self.comment_lines / self.code_lines:.1f} % of the lines"
        yield f"locks              {_listed(self.locks)}"
        yield f"global statements  {_listed(self.globals)}"
        yield f"broad excepts      {_listed(self.broad_excepts)}"
        yield f"mutable globals    {_listed(self.mutable_state)}"

    def faults(self) -> Iterator[str]:
        """What is out of bounds, a line each."""
        yield from (f"{at}: {n} lines, over {MAX_LENGTH}" for at, n in self.lengths.items() if n > MAX_LENGTH)
        yield from (f"{at}: no return annotation" for at in self.unannotated)
        yield from (f"{at}: a lock; give the state one owner" for at in self.locks)
        yield from (f"{at}: a global statement" for at in self.globals)


def _length(node: Function) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is None:
        return lines
    docstring = node.body[0]
    return lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)


def _names(node: ast.AST) -> Iterator[str]:
    """The dotted names that a node speaks of, where it is `module.name` or `from module import name`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield f"{node.value.id}.{node.attr}"
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(it is None or (isinstance(it, ast.Name) and it.id in {"Exception", "BaseException"}) for it in caught)


def _mutable_state(tree: ast.Module) -> Iterator[int]:
    """Lines that bind a module-level name to a mutable container. An UPPER_CASE name says: a table, never changed."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(it, ast.Name) and not _is_constant(it.id) for it in targets):
                yield node.lineno


def _is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in MUTABLE_CALLS
    return isinstance(value, MUTABLE_DISPLAYS)


def _is_constant(name: str) -> bool:
    return name.isupper() or (name.startswith("__") and name.endswith("__"))


def _listed(places: list[str]) -> str:
    return f"{len(places)}{': ' if places else ''}{', '.join(places)}"


def main() -> int:
    """Print the figures of the package, or of the folder that is named; 1 where one is out of bounds."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / "imagegen"
    figures = Figures()
    for path in sorted(root.rglob("*.py")):
        figures.add_file(path, path.relative_to(root).as_posix())
    if not figures.lengths:
        print(f"no functions under {root}", file=sys.stderr)
        return 1
    for line in figures.report():
        print(line, flush=True)
    faults = list(figures.faults())
    for line in faults:
        print(line, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
