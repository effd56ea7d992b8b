"""The bench measures what it says: the right work, the right bytes, honest ratios."""

import json
import math
import sys

import pytest
import torch
from typer.testing import CliRunner

from bench import aims, report
from grokfused.lab.bench import plots, probes, rows, show
from grokfused.lab.bench.cases import CASES, PARAMETERS, TENSORS, elements
from grokfused.lab.bench.implementations import (
    COPY,
    FUSED,
    IMPLEMENTATIONS,
    LR,
    NARROW,
    OURS,
    PYTHON_EMA,
    Implementation,
    Mask,
    Place,
    Work,
    grads_of,
    ours,
    parameters,
)
from grokfused.lab.bench.peers import ALL, PEERS, Peer, PeerMissing
from grokfused.lab.bench.sets import SETS
from grokfused.lab.bench.timing import Turns, in_turns, ratios
from grokfused.lab.bench.traffic import traffic, under_masks
from grokfused.lab.cli import app
from grokfused.step.mask import pack

TWICE = Turns(0.0, least=2)
SMALL = [(70,), (5, 33), (64, 96)]


@pytest.mark.parametrize(
    ("options", "dtype", "expected"),
    [
        ({}, torch.float32, (20, 16)),
        ({"grad_filter": "none"}, torch.float32, (16, 12)),
        ({"state_dtype": torch.bfloat16}, torch.float32, (14, 10)),
        ({"amsgrad": True}, torch.bfloat16, (20, 18)),
        ({"state_dtype": torch.bfloat16, "param_rounding": "kahan"}, torch.bfloat16, (12, 10)),
        ({"param_rounding": "kahan"}, torch.float32, (20, 16)),
        ({"max_grad_norm": 0.5}, torch.float32, (24, 16)),
    ],
    ids=str,
)
def test_bytes_are_counted_from_what_the_optimizer_keeps(options, dtype, expected) -> None:
    moved = traffic(options, dtype)
    assert (moved.read, moved.written) == expected


def test_bytes_under_a_mask_are_counted_by_words() -> None:
    param, half = torch.zeros(64), torch.arange(64) < 32

    def moved(mask: torch.Tensor, mode: str = "zero") -> float:
        return under_masks(traffic({}), [pack(mask, param, mode)]).total

    assert moved(half | True) == 36.125
    assert moved(half) == (36 + 4) / 2 + 0.125
    assert moved(half & False) == 4.125
    assert moved(half & False, "freeze") == 0.125


@pytest.mark.parametrize(
    ("case", "tensors", "count"),
    [("demo", 29, 422_784), ("gpt-2 small", 148, 124_439_808), ("resnet-50", 161, 25_557_032)],
)
def test_cases_have_their_published_sizes(case, tensors, count) -> None:
    assert (len(CASES[case]), elements(CASES[case])) == (tensors, count)


def test_the_demo_case_is_the_demos_network() -> None:
    from grokfused.lab.model import Decoder

    assert sorted(tuple(p.shape) for p in Decoder(99).parameters()) == sorted(CASES["demo"])


def test_the_curves_vary_one_thing() -> None:
    assert [elements(shapes) for shapes in PARAMETERS.values()] == [10**power for power in range(3, 9)]
    assert {elements(shapes) for shapes in TENSORS.values()} == {2**20}


def test_the_sets_name_what_there_is() -> None:
    for name, bench in SETS.items():
        assert set(bench.implementations) <= set(ALL), name
        assert {OURS, COPY} <= set(bench.implementations), name


def test_a_drift_that_hits_all_alike_leaves_the_ratio() -> None:
    drift = [1.0, 2.0, 10.0, 3.0]
    assert ratios([3 * d for d in drift], [2 * d for d in drift]) == (1.5, 1.5, 1.5)


def test_implementations_take_turns() -> None:
    order: list[str] = []

    def one(name: str) -> float:
        order.append(name)
        return 1.0

    assert [len(times) for times in in_turns("abcd", Turns(0.0, least=9), one)] == [9] * 4
    rounds = ["".join(order[start : start + 4]) for start in range(0, 36, 4)]
    assert {"".join(sorted(each)) for each in rounds} == {"abcd"}
    assert {each.partition("a")[0][-1:] for each in rounds} == {"", "b", "c", "d"}  # who goes before a
    assert [len(times) for times in in_turns("a", Turns(60.0, most=3), one)] == [3]


@pytest.mark.parametrize(
    ("walls", "place"),
    [
        ({"a": [1.0, 1.0, 1.0], "b": [2.0, 2.1, 1.9], "c": [3.0, 3.0, 3.0]}, [1, 1]),
        ({"a": [1.0, 1.2, 0.8], "b": [1.1, 0.9, 1.0], "c": [3.0, 3.0, 3.0]}, [1, 2]),
        ({"a": [9.0, 9.0, 9.0], "b": [1.1, 0.9, 1.0], "c": [3.0, 3.0, 3.0]}, [3, 3]),
    ],
    ids=["first", "first or second", "last"],
)
def test_a_difference_within_the_spread_is_not_ranked(walls, place) -> None:
    assert rows.rank("a", walls) == place


def test_a_ratio_that_may_be_either_way_is_marked() -> None:
    row = {"times_longer_than": {OURS: {"median": 1.02, "low": 0.9, "high": 1.1}}}
    assert show._ratio(row, OURS) == "~1.02"
    row["times_longer_than"][OURS]["low"] = 1.01
    assert show._ratio(row, OURS) == "1.02"


def _installed(name: str) -> bool:
    """Whether the package is there; those of 8 bits are not in requirements.txt (150 MB)."""
    try:
        PEERS[name].make(parameters([(4,)]))
    except PeerMissing:
        return False
    return True


EXACT = [
    pytest.param(name, marks=[pytest.mark.slow] if "torch.compile" in name else [])
    for name, each in ALL.items()
    if each.work and not name.startswith("GrokAdamW, backend=")
]


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize("name", EXACT)
def test_each_does_the_work_that_is_said_of_it(name, monkeypatch) -> None:
    if name in PEERS and not _installed(name):
        pytest.skip(f"{PEERS[name].package} is not installed")
    if name == "heavyball AdamW":  # compiling it would take longer than all the others together
        monkeypatch.setattr(sys.modules["heavyball"].utils, "compile_mode", None)
    implementation = ALL[name]
    work = implementation.work
    theirs, own = parameters(SMALL), parameters(SMALL)
    step, twin = implementation.make(theirs), ours("twin", work.mask, **work.options).make(own)
    grads = [grad.clone() for grad in grads_of(theirs)]
    written = False
    for _ in range(8):
        for param, grad in zip(theirs, grads, strict=True):
            param.grad.copy_(grad)
        step()
        twin()
        written |= not all(map(torch.equal, grads_of(theirs), grads))
    assert written == implementation.writes_grads
    for a, b, start in zip(theirs, own, parameters(SMALL), strict=True):
        if work.states == "8 bits":  # 8-bit states: as near as their rounding lets them be
            assert (a - b).abs().mean() < 0.05 * (b - start).abs().mean()
        else:  # a thousandth of a step: others fuse and order their roundings, and place eps, otherwise
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * LR)


def test_a_peer_that_is_absent_and_one_that_fails_are_rows_that_say_so() -> None:
    def fails(params):
        raise ZeroDivisionError("of no use\nfor anything")

    absent = Peer("grok-of-tomorrow", "grok_of_tomorrow:Adam", {}, Work())
    who = [absent.implementation("absent"), Implementation("failing", fails), ours()]
    found = rows.measure("few", [(9,)], who, Place(), TWICE)
    reasons = [row.get("why_not") for row in found]
    assert reasons == [
        "grok-of-tomorrow is not installed (pip install 'grokfused[bench]')",
        "ZeroDivisionError: of no use",
        None,
    ]
    assert [show.cells(row)[1] for row in found][:2] == [f"absent: {reasons[0]}", f"failing: {reasons[1]}"]
    assert found[2]["rank"] == [1, 1]


def test_what_does_not_fit_and_what_is_too_slow_are_rows_that_say_so(monkeypatch) -> None:
    monkeypatch.setattr(rows, "free_bytes", lambda device: 200)
    who = [ours(), IMPLEMENTATIONS[PYTHON_EMA]]
    found = rows.measure("few", [(10,)], who, Place(), Turns(0.0, least=2, slowest=math.inf))
    assert "why_not" not in found[0]  # 20 bytes an element and a mask of none; those that keep gradients, 24
    assert found[1]["why_not"].startswith("it needs 0.0 GB of memory")
    found = rows.measure("few", [(9,)], [ours()], Place(), Turns(0.0, least=2, slowest=0.0))
    assert "with more --seconds it takes part" in found[0]["why_not"]


def test_launches_and_memory_for_the_moment_are_those_of_one_step() -> None:
    kept = [torch.ones(1000)]

    def step() -> None:  # the memory that is freed was taken in the step before
        kept[0] = torch.neg(kept[0])
        torch.neg(kept[0], out=kept[0])

    assert probes.probe(step, "cpu") == (2, 4000)


def test_the_native_step_is_counted_though_the_profiler_does_not_see_it() -> None:
    step = ours().make(parameters(SMALL))
    step()
    seen = probes.probe(step, "cpu")
    assert seen.launches == 1
    assert seen.peak_extra_bytes < 1000
    many = probes.probe(IMPLEMENTATIONS["AdamW(for-loop)"].make(parameters(SMALL)), "cpu")
    assert many.launches > 10 * len(SMALL)


@pytest.mark.parametrize("name", ["unstructured", "whole rows"])
def test_masks_keep_what_they_say(name) -> None:
    params = parameters([(64, 64), (6400,)])
    matrix, vector = Mask(name, 0.25).of(params)
    assert 0.1 < matrix.float().mean() < 0.4
    assert 0.2 < vector.float().mean() < 0.3
    assert len(matrix.unique(dim=1).T) == (1 if name == "whole rows" else 64)


def test_a_case_that_others_disturbed_says_so() -> None:
    row = {"case": "demo", "others": 0.314}
    assert show.disturbed([row, {"case": "few", "others": 0.01}]) == [
        "While demo was measured, other processes took 31% of the processors: do not trust its times"
    ]


def test_what_others_take_is_what_is_not_ours(monkeypatch) -> None:
    counted = iter([(10.0, 4.0, 1.0), (20.0, 12.0, 4.0)])  # of 10 seconds 8 were busy, 3 by us
    monkeypatch.setattr(probes.Others, "_seconds", lambda self: next(counted))
    with probes.Others() as others:
        pass
    assert others.share == 0.5


def small_sets(monkeypatch) -> None:
    for name, bench in list(SETS.items()):
        few = {case: [(9 + number,), (3, 2)] for number, case in enumerate(bench.cases)}
        monkeypatch.setitem(SETS, name, bench._replace(cases=few))


@pytest.mark.slow
def test_the_command_measures_shows_and_writes(tmp_path, monkeypatch) -> None:
    small_sets(monkeypatch)
    made = {name: tmp_path / f"run.{name}" for name in ("json", "markdown", "plot")}
    options = [f"--{name}={path}" for name, path in made.items()]
    sets = ["steps", "masks", "clipping", "parameters", "tensors"]
    result = CliRunner().invoke(app, ["bench", *sets, "--seconds", "0", *options], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(made["json"].read_text())
    seen = [(row["set"], row["case"], row["implementation"]) for row in record["rows"]]
    expected = [(s, c, i) for s in sets for c in SETS[s].cases for i in SETS[s].implementations]
    assert seen == expected
    assert record["machine"]["torch"] == torch.__version__
    with_demo = sum(len(SETS[name].implementations) for name in sets if "demo" in SETS[name].cases)
    assert made["markdown"].read_text().count(" · demo | ") == with_demo
    assert made["plot"].read_bytes().startswith(b"\x89PNG")
    assert NARROW in result.stdout
    # What the repository promises can be read from such a run.
    found = [
        aim for name in ("steps", "masks", "clipping") for aim in aims.of_set(name, in_set(record, name))
    ]
    assert len(found) == 8 + 5 + 3
    ours_of = [row for row in record["rows"] if row["implementation"].startswith("GrokAdamW")]
    assert all(row["share_of_limit"]["low"] > 0 for row in ours_of)
    assert "aim >= 1.35" in report.section(record, "steps")


def test_an_aim_of_a_row_without_figures_is_missed() -> None:
    names = SETS["masks"].implementations
    about = [("float32", "gpt-30m", name) for name in names]
    bare = [
        dict(zip(("dtype", "case", "implementation"), each, strict=True), why_not="absent") for each in about
    ]
    assert [aim.kept for aim in aims.of_set("masks", bare)] == [False] * 5


def in_set(record, name):
    return [row for row in record["rows"] if row["set"] == name]


def test_the_command_measures_what_is_chosen(monkeypatch, tmp_path) -> None:
    small_sets(monkeypatch)
    path = tmp_path / "run.json"
    chosen = ["--case", "demo", "--only", "AdamW(f", "--dtype", "bfloat16", "--dtype", "float32"]
    command = ["bench", *chosen, "--seconds", "0", "--json", str(path)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    found = json.loads(path.read_text())["rows"]
    where = json.loads(path.read_text())["machine"]["command"]
    assert where.startswith("grokfused bench steps --case demo --only 'AdamW(f' --dtype bfloat16")
    assert {row["case"] for row in found} == {"demo"}
    assert {row["dtype"] for row in found} == {"float32", "bfloat16"}
    names = {row["implementation"] for row in found}
    assert {FUSED, COPY} < names
    assert all("AdamW(f" in name for name in names - {COPY})
    assert {row["bytes_per_element"] for row in found if row["implementation"] == FUSED} == {28, 14}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step"], "there is no set 'step'; there are: steps, masks"),
        (["--case", "vgg"], "there is no case 'vgg'"),
        (["--only", "Lion"], "no implementation's name holds 'Lion'"),
        (["--dtype", "float64"], "there is no dtype 'float64'; there are: float32"),
        (["--device", "tpu"], "there is no device 'tpu'; there are: cpu, cuda"),
        (["--json", "/tmp/../tmp/run", "--plot", "/tmp/run"], "must name different files"),
        (["--only", ""], "no implementation's name holds ''"),
        (["--json", "/nowhere/run.json"], "/nowhere/run.json cannot be written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_command_refuses_before_it_measures(arguments, message, monkeypatch) -> None:
    monkeypatch.setattr("grokfused.lab.bench.command.measure", None)
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")


def test_there_is_nothing_to_draw_of_rows_that_say_why_not(tmp_path) -> None:
    with pytest.raises(ValueError, match="no row was measured"):
        plots.draw([{"set": "steps", "why_not": "absent"}], tmp_path / "run.png")
