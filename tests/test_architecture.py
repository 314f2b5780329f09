"""The house rules that a reader relies on: data flows one way, and nothing heavy happens at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "codeprior"

# A module may import only from lines above its own. Names ending in a dot stand for every module of that room.
ORDER = [
    "version",
    "errors",
    "machine",
    "shards",
    "hub",
    "own",
    "randomness",
    "artifact",
    "sharing",
    "config.",
    "progress",
    "parts",
    "npz",
    "pickles",
    "weights",
    "families",
    "codebook",
    "clustering.",
    "prior",
    "push",
    "rearrangement",
    "plots.",
    "embedded",
    "crops",
    "images",
    "device",
    "tensors",
    "states",
    "pixels",
    "runlog",
    "evaluation.",
    "tokenizers.",
    "codes",
    "encoding",
    "layouts",
    "exchange",
    "verify",
    "extract",
    "captions",
    "products",
    "attention",
    "losses",
    "model",
    "objectives",
    "sanity",
    "checkpoint",
    "originals",
    "convert",
    "generation.",
    "training.",
    "sweep.",
    "likelihood",
    "replacement",
    "reconstruct",
    "report.",
    "inspection",
    "stages",
    "demo",
    "doctor",
    "cli",
    "__main__",
]
WITHOUT_TORCH = [
    "codeprior",
    "codeprior.cli",
    "codeprior.families",
    "codeprior.codebook",
    "codeprior.prior",
    "codeprior.extract",
    "codeprior.images",
    "codeprior.plots",
    "codeprior.report",
]


def _rank(module: str) -> int:
    for rank, entry in enumerate(ORDER):
        if module == entry or (entry.endswith(".") and (module + ".").startswith(entry)):
            return rank
    raise AssertionError(f"{module} has no place in the order of modules; give it one")


def _modules() -> dict[str, Path]:
    names = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        names[name] = path
    return names


def _imports(path: Path) -> set[str]:
    """Modules of codeprior that a file imports anywhere in it, without the package's name."""
    found = set()
    package = path.relative_to(SOURCE).parts[:-1]
    known = _modules()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(("codeprior", *package[: len(package) - node.level + 1])) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            names = [base] + [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            inner = name.removeprefix("codeprior").lstrip(".")
            if name.startswith("codeprior") and inner in known and inner:
                found.add(inner)
    return found


def test_no_module_imports_from_a_later_room():
    back_edges = [
        f"{module} imports {imported}"
        for module, path in _modules().items()
        if module
        for imported in _imports(path)
        if _rank(imported) > _rank(module)
    ]
    assert not back_edges


def test_no_file_of_a_room_imports_in_a_circle():
    graph = {module: _imports(path) for module, path in _modules().items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
        if module not in done:
            for imported in graph[module]:
                if graph[imported] is not graph[module]:
                    visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        if module:
            visit(module, ())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_the_prior_half_imports_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_loads_neither_torch_nor_numpy_heavy_rooms():
    code = (
        "import sys\nfrom codeprior.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numba', 'scipy', 'sklearn', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_torchvision_is_not_needed():
    for path in _modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not any(name.split(".")[0] == "torchvision" for name in names), path
