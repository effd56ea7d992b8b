"""The map's rules: who may include and import whom, and that the columns of the matrix match."""

import ast
import graphlib
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from grokfused.state.arrays import NAMES
from grokfused.step.scalars import Scalars

ROOT = Path(__file__).parent.parent
STEP_HEADERS = sorted((ROOT / "csrc" / "step").glob("*.h"))
MIRROR = sorted((ROOT / "triton_kernels").glob("*.py"))
PACKAGE = ROOT / "grokfused"
CORE = sorted(p for p in PACKAGE.rglob("*.py") if not {"lab", "triton_kernels"} & set(p.parts))


def includes(path: Path) -> list[str]:
    return re.findall(r'#include\s+[<"]([^>"]+)[>"]', path.read_text())


def imports(path: Path) -> set[str]:
    """All modules that a file imports anywhere, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("header", STEP_HEADERS, ids=lambda path: path.name)
def test_the_step_includes_neither_torch_nor_cuda(header) -> None:
    allowed = {path.name for path in STEP_HEADERS}
    allowed |= {"cmath", "cstdint", "cstring", "string_view", "sstream", "stdexcept"}
    assert set(includes(header)) <= allowed


@pytest.mark.parametrize("header", STEP_HEADERS, ids=lambda path: path.name)
def test_only_portable_asks_which_compiler_reads_it(header) -> None:
    conditionals = re.findall(r"^\s*#\s*if.*", header.read_text(), re.MULTILINE)
    assert bool(conditionals) == (header.name == "portable.h")


def test_the_reference_imports_only_torch_and_numpy() -> None:
    ours = {name for name in imports(PACKAGE / "backends" / "reference.py") if "." not in name}
    assert ours - sys.stdlib_module_names == {"torch", "numpy"}


# Folder -> those it builds on. The circles that a step would close otherwise end in `members.Owner`.
MAY_IMPORT = {
    "backends": {"backends", "state"},
    "state": {"state", "step", "backends"},
    "step": {"step", "state", "backends"},
    "optim": {"optim", "step", "state"},
    "pruning": {"pruning"},
    "schedules": {"schedules", "step"},
    "compat": {"compat", "schedules", "optim", "step", "backends", "state"},
}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_who_may_import_whom(path) -> None:
    names = imports(path)
    assert not any(name.startswith("grokfused.lab") for name in names), "the core never imports the lab"
    if path.name != "native.py":
        assert not any(name.endswith("._C") for name in names), "only native.py loads _C"
    if path.name != "optimizer.py":
        assert not any(name.startswith("torch.optim") for name in names), (
            "only optimizer.py knows torch.optim"
        )
        own = path.parent == PACKAGE or path.name == "adamw.py"
        assert "grokfused.optim.optimizer" not in names or own, "nobody needs the classes"
    assert "grokfused.backends.native" not in names, "backends are imported by name, when they are asked"
    if path.parent.name in MAY_IMPORT:
        folders = {name.split(".")[1] for name in names if name.startswith("grokfused.")}
        assert folders & set(MAY_IMPORT) <= MAY_IMPORT[path.parent.name]


def test_modules_of_the_core_import_each_other_in_no_circle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in CORE}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    del modules["grokfused"]  # the door, through which names are imported
    needs = {name: (imports(path) & set(modules)) - {name} for name, path in modules.items()}
    order = list(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError
    assert set(order) == set(modules)


def test_importing_grokfused_loads_neither_native_code_nor_a_backend_nor_the_compiler() -> None:
    late = {"triton", "grokfused._C", "grokfused.backends.native", "torch._dynamo"}
    code = f"import grokfused, sys; print(sorted(set(sys.modules) & {late}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_columns_have_the_same_scalars_in_the_same_order() -> None:
    header = (ROOT / "csrc" / "step" / "scalars.h").read_text()
    assert tuple(re.findall(r"^\s+Real (\w+);", header, re.MULTILINE)) == Scalars._fields


def test_the_columns_have_the_same_states() -> None:
    import grokfused._C

    from grokfused.backends import block8
    from grokfused.state.arrays import ARRAYS
    from grokfused.step.options import CHOICES

    for name, amsgrad, kahan in product(CHOICES["grad_filter"], (False, True), (False, True)):
        options = {"grad_filter": name, "amsgrad": amsgrad, "param_rounding": "kahan" if kahan else "nearest"}
        found = grokfused._C.state_rows(name, amsgrad, kahan, "uint8")
        rows = [(array.name, array.planes, array.of) for array in ARRAYS if array.is_used(options)]
        assert [row[:3] for row in found] == rows
        assert grokfused._C.state_rows(name, amsgrad, kahan, "bfloat16") == found[:-1]
        kinds = {row[0]: row[3:] for row in found if row[2] == "states"}
        assert kinds == {state: block8.kind_of(state) for state in kinds}


def test_the_columns_have_the_same_blocks() -> None:
    from grokfused.backends import block8

    header = (ROOT / "csrc" / "step" / "block8.h").read_text()
    numbers = dict(re.findall(r"constexpr \w+ k(\w+) = (\w+?)u?;", header))
    assert (int(numbers["Block"]), int(numbers["Words"])) == (block8.BLOCK, block8.WORDS)
    assert int(numbers["Largest8"], 16) == block8.LARGEST


def test_the_columns_have_the_same_turns() -> None:
    from grokfused.backends import windows

    for path, name in (
        ("csrc/step/windows.h", "kTurn = "),
        ("triton_kernels/windows.py", r"TURN = tl.constexpr\("),
    ):
        assert re.search(rf"{name}(\d+)", (ROOT / path).read_text())[1] == str(windows.TURN)


def test_the_columns_add_squares_in_the_same_pieces_and_lanes() -> None:
    from grokfused.backends import norm

    header = (ROOT / "csrc" / "step" / "norm.h").read_text()
    assert dict(re.findall(r"kNorm(\w+) = (\d+);", header)) == {
        "Piece": str(norm.PIECE),
        "Lanes": str(norm.LANES),
    }


def test_the_columns_have_the_same_mask_modes_and_lanes() -> None:
    from grokfused.backends import storage
    from grokfused.step import mask

    header = (ROOT / "csrc" / "step" / "mask.h").read_text()
    codes = {name.lower(): int(code) for name, code in re.findall(r"\bk(\w+) = (\d+)(?= ?[,}])", header)}
    assert codes == {mode: code for code, mode in enumerate(mask.MODES)}
    assert int(re.search(r"kLanes = (\d+);", header)[1]) == storage.LANES
    mirror = (ROOT / "triton_kernels" / "mask.py").read_text()
    assert re.search(r"LANES = tl.constexpr\((\d+)\)", mirror)[1] == str(storage.LANES)
    assert "NONE, ZERO, FREEZE = " in mirror


def test_the_triton_mirror_has_every_room_and_imports_torch_and_triton_only() -> None:
    rooms = {"storage", "block8", "windows", "grad_filter", "mask", "adamw"}
    assert {path.stem for path in MIRROR} == {
        "__init__",
        "block8_tile",
        "columns",
        "kernel",
        "launcher",
        *rooms,
    }
    assert rooms <= {path.stem for path in STEP_HEADERS}
    names = {name.split(".")[0] for path in MIRROR for name in imports(path)} - sys.stdlib_module_names
    assert names - {path.stem for path in MIRROR} == {"torch", "triton"}


def test_the_triton_mirror_has_the_same_scalars_and_arrays_in_the_same_order() -> None:
    source = (ROOT / "triton_kernels" / "columns.py").read_text()
    columns = re.findall(r"^((?:[A-Z0-9_]+, )+[A-Z0-9_]+) = \(tl", source, re.MULTILINE)
    listed = [name.lower() for line in columns for name in line.split(", ")]
    count = len(Scalars._fields)
    assert tuple(listed[:count]) == Scalars._fields
    fixed, of_filters = (
        re.findall(r'"(\w+)"', re.search(r"^ARRAYS = \((.+?)\)", text, re.MULTILINE)[1])
        for text in (source, (ROOT / "triton_kernels" / "grad_filter.py").read_text())
    )
    assert sorted([*fixed, *of_filters]) == sorted(["param", "grad", *NAMES])
    places = re.search(r"^((?:[A-Z_]+_AT, )+[A-Z_]+_AT) = \($", source, re.MULTILINE)[1].lower().split(", ")
    assert [name.removesuffix("_at") for name in places] == [*fixed, "filters"]


def test_the_reference_and_the_triton_launcher_are_called_alike() -> None:
    def signature(path: Path) -> str:
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        (found,) = (function for function in functions if function.name == "adamw_step_")
        return ast.unparse(found.args)

    reference = signature(PACKAGE / "backends" / "reference.py")
    assert "found_inf" in reference
    assert signature(ROOT / "triton_kernels" / "launcher.py") == reference


def test_the_update_is_written_in_its_room_in_its_mirror_and_in_the_truth_only() -> None:
    algebra = re.compile(r"beta2 \* .*exp_avg_sq")
    sources = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp"), *CORE, *MIRROR]
    found = {path.relative_to(ROOT).as_posix() for path in sources if algebra.search(path.read_text())}
    assert found == {"csrc/step/adamw.h", "grokfused/backends/reference.py", "triton_kernels/adamw.py"}


def test_the_extension_uses_the_stable_abi_alone() -> None:
    import grokfused._C

    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", grokfused._C.__file__], capture_output=True, text=True, check=True
    ).stdout
    # Mangled names of at::, c10:: and torch:: are libtorch's C++, which changes with every release.
    assert re.findall(r"U (_ZN\w*(?:2at|3c10|5torch)\w*)", symbols) == []
