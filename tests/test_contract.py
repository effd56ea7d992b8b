"""The map's rules: who may include and import whom, and that the columns of the matrix match."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grokfused.scalars import Scalars

ROOT = Path(__file__).parent.parent
STEP_HEADERS = sorted((ROOT / "csrc" / "step").glob("*.h"))
MIRROR = sorted((ROOT / "triton_kernels").glob("*.py"))
CORE = sorted((ROOT / "grokfused").glob("*.py"))


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


def test_the_reference_imports_only_torch() -> None:
    ours = {name for name in imports(ROOT / "grokfused" / "reference.py") if "." not in name}
    assert ours - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_who_may_import_whom(path) -> None:
    names = imports(path)
    assert not any(name.startswith("grokfused.lab") for name in names), "the core never imports the lab"
    if path.name != "ops.py":
        assert not any(name.endswith("._C") for name in names), "only ops.py loads _C"
    if path.name != "optimizer.py":
        assert not any(name.startswith("torch.optim") for name in names), (
            "only optimizer.py knows torch.optim"
        )
    assert "grokfused.ops" not in names, "backends.py imports its backends by name, when they are asked"


def test_importing_grokfused_loads_neither_native_code_nor_a_backend_nor_the_compiler() -> None:
    late = {"triton", "grokfused._C", "grokfused.ops", "torch._dynamo"}
    code = f"import grokfused, sys; print(sorted(set(sys.modules) & {late}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_columns_have_the_same_scalars_in_the_same_order() -> None:
    header = (ROOT / "csrc" / "step" / "scalars.h").read_text()
    assert tuple(re.findall(r"^\s+float (\w+);", header, re.MULTILINE)) == Scalars._fields


def test_the_columns_have_the_same_states() -> None:
    from grokfused.buckets import STATE_ARRAYS

    header = (ROOT / "csrc" / "step" / "slice.h").read_text()
    assert tuple(re.findall(r"void\* (\w+);", header)) == ("param", "grad", *STATE_ARRAYS)


def test_the_columns_have_the_same_mask_modes_and_lanes() -> None:
    from grokfused import mask, reference

    header = (ROOT / "csrc" / "step" / "mask.h").read_text()
    codes = {name.lower(): int(code) for name, code in re.findall(r"\bk(\w+) = (\d+)(?= ?[,}])", header)}
    assert codes == {mode: code for code, mode in enumerate(mask.MODES)}
    assert int(re.search(r"kLanes = (\d+);", header)[1]) == reference.LANES
    mirror = (ROOT / "triton_kernels" / "mask.py").read_text()
    assert re.search(r"LANES = tl.constexpr\((\d+)\)", mirror)[1] == str(reference.LANES)
    assert "NONE, ZERO, FREEZE = " in mirror


def test_the_triton_mirror_has_every_room_and_imports_torch_and_triton_only() -> None:
    rooms = {"storage", "grad_filter", "mask", "adamw"}
    assert {path.stem for path in MIRROR} == {"__init__", "kernel", "launcher", *rooms}
    assert rooms <= {path.stem for path in STEP_HEADERS}
    names = {name.split(".")[0] for path in MIRROR for name in imports(path)} - sys.stdlib_module_names
    assert names - {path.stem for path in MIRROR} == {"torch", "triton"}


def test_the_triton_mirror_has_the_same_scalars_and_arrays_in_the_same_order() -> None:
    source = (ROOT / "triton_kernels" / "kernel.py").read_text()
    columns = re.findall(r"^((?:[A-Z0-9_]+, )+[A-Z0-9_]+) = \(tl", source, re.MULTILINE)
    listed = [name.lower() for line in columns for name in line.split(", ")]
    count = len(Scalars._fields)
    assert tuple(listed[:count]) == Scalars._fields
    header = (ROOT / "csrc" / "step" / "slice.h").read_text()
    arrays = re.search(r"^((?:[A-Z_]+_AT, )+[A-Z_]+_AT) = \(", source, re.MULTILINE)[1].lower().split(", ")
    assert [name.removesuffix("_at") for name in arrays] == re.findall(r"void\* (\w+);", header)


def test_the_update_is_written_in_its_room_in_its_mirror_and_in_the_truth_only() -> None:
    algebra = re.compile(r"beta2 \* .*exp_avg_sq")
    sources = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp"), *CORE, *MIRROR]
    found = {path.relative_to(ROOT).as_posix() for path in sources if algebra.search(path.read_text())}
    assert found == {"csrc/step/adamw.h", "grokfused/reference.py", "triton_kernels/adamw.py"}


def test_the_extension_uses_the_stable_abi_alone() -> None:
    import grokfused._C

    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", grokfused._C.__file__], capture_output=True, text=True, check=True
    ).stdout
    # Mangled names of at::, c10:: and torch:: are libtorch's C++, which changes with every release.
    assert re.findall(r"U (_ZN\w*(?:2at|3c10|5torch)\w*)", symbols) == []


def test_the_op_tells_which_arguments_it_changes() -> None:
    import grokfused.ops  # noqa: F401  (registers the op)

    schema = torch.ops.grokfused.adamw_step_.default._schema
    changed = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    assert changed == [
        "params",
        "exp_avgs",
        "exp_avg_sqs",
        "max_exp_avg_sqs",
        "grad_emas",
        "kahan_comps",
        "steps",
    ]
