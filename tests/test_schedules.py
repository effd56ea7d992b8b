"""Schedules of alpha, lamb and weight_decay, and alpha by the losses."""

import copy
import math
from itertools import permutations

import pytest
import torch
from stepping import OPTIONS, assert_same_bits, new_param, through_a_file, train, values
from torch.optim import lr_scheduler

from grokfused import GrokAdamW, compat
from grokfused.lab.agreement import differing_bits
from grokfused.schedules import Constant, Cosine, GrokkingSignal, Linear, Schedule, WarmUp, grokking_signal


def optimizer_of(*groups: dict, **options) -> GrokAdamW:
    """An optimizer of one parameter in each group."""
    made = [{"params": [new_param(7, 3, seed=n)], **group} for n, group in enumerate(groups or ({},))]
    return GrokAdamW(made, **{**OPTIONS, **options})


def course(schedule: Schedule, steps: int) -> list[list[float]]:
    found = [schedule.get_last_values()]
    for _ in range(steps):
        schedule.step()
        found.append(schedule.get_last_values())
    return found


class TestShapes:
    # The same numbers under lr, driven by torch: each group from its own initial value.
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (Constant(), lambda opt: lr_scheduler.ConstantLR(opt, factor=1.0)),
            (Linear(end=0.0, steps=6), lambda opt: lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=6)),
            (Cosine(end=0.0, steps=8), lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=8)),
            (
                WarmUp(4, Cosine(end=0.0, steps=4)),
                lambda opt: lr_scheduler.LambdaLR(
                    opt, lambda n: n / 4 if n < 4 else (1 + math.cos(math.pi * (n - 4) / 4)) / 2
                ),
            ),
        ],
        ids=["constant", "linear", "cosine", "warm-up"],
    )
    def test_each_is_what_torch_does_with_lr(self, ours, theirs) -> None:
        optimizer = optimizer_of({"weight_decay": 0.1}, {"weight_decay": 0.0}, {"weight_decay": 0.7})
        found = course(Schedule(optimizer, "weight_decay", ours), 8)
        plain = torch.optim.SGD([{"params": [new_param(1)], "lr": lr} for lr in (0.1, 0.0, 0.7)])
        scheduler = theirs(plain)
        for step in range(9):
            # torch multiplies from step to step, and gathers a rounding at each.
            assert found[step] == pytest.approx(scheduler.get_last_lr(), rel=1e-12, abs=1e-16)
            plain.step()
            if step < 8:
                scheduler.step()
        assert [group["initial_weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.7]

    def test_ends_are_exact_and_never_passed(self) -> None:
        for shape in (Linear(start=0.9, end=0.98, steps=7), Cosine(start=0.9, end=0.98, steps=7)):
            found = [value for (value,) in course(Schedule(optimizer_of(), "alpha", shape), 10)]
            assert (found[0], found[7:]) == (0.9, [0.98] * 4)
            assert found == sorted(found)
            assert all(0.9 <= value <= 0.98 for value in found)

    @pytest.mark.parametrize("end", ["start", "end"])
    @pytest.mark.parametrize("shape", [Linear, Cosine])
    def test_an_end_that_is_no_number_is_refused_by_name(self, shape, end) -> None:
        with pytest.raises(TypeError, match=f"{end} must be a number or None, got 'x'"):
            shape(steps=3, **{end: "x"})

    @pytest.mark.parametrize("steps", [0, -1, 2.0, True, None])
    @pytest.mark.parametrize("shape", [lambda steps: Linear(steps=steps), WarmUp], ids=["linear", "warm-up"])
    def test_a_length_that_is_none_is_refused(self, shape, steps) -> None:
        with pytest.raises((TypeError, ValueError), match="steps must be an integer >= 1, got"):
            shape(steps)


class TestSchedule:
    def test_values_are_plain_floats_whatever_a_function_returns(self) -> None:
        optimizer = optimizer_of({}, {})
        for value in (3, torch.tensor(0.5), lambda step, initial: torch.tensor(0.5 + step)):
            schedule = Schedule(optimizer, "lamb", value if callable(value) else lambda *_, v=value: v)
            schedule.step()
            assert [type(group["lamb"]) for group in optimizer.param_groups] == [float, float]

    def test_a_list_has_one_for_each_group_and_none_leaves_one_alone(self) -> None:
        optimizer = optimizer_of({}, {"lamb": 0.25}, {})
        schedule = Schedule(optimizer, "lamb", [Linear(end=0.0, steps=2), None, 5.0])
        optimizer.param_groups[1]["lamb"] = 0.75
        schedule.step()
        assert [group["lamb"] for group in optimizer.param_groups] == [0.85, 0.75, 5.0]

    def test_a_group_added_later_starts_from_its_own_value(self) -> None:
        optimizer = optimizer_of()
        schedule = Schedule(optimizer, "lamb", Linear(end=0.0, steps=4))
        schedule.step()
        optimizer.add_param_group({"params": [new_param(2)], "lamb": 8.0})
        schedule.step()
        assert [group["lamb"] for group in optimizer.param_groups] == [0.85, 4.0]

    def test_a_step_takes_the_values_of_its_time(self) -> None:
        """One run under schedules, one in which each step is given its numbers by hand."""
        driven, by_hand = optimizer_of(), optimizer_of()
        schedules = [
            Schedule(driven, "alpha", Linear(start=0.5, end=0.9, steps=4)),
            Schedule(driven, "lamb", Cosine(end=0.0, steps=6)),
        ]
        for step in range(8):
            share = min(step / 4, 1.0)
            alpha = 0.9 if share == 1.0 else 0.5 + (0.9 - 0.5) * share
            lamb = 1.7 + (0.0 - 1.7) * (1 - math.cos(math.pi * step / 6)) / 2 if step < 6 else 0.0
            by_hand.param_groups[0].update(alpha=alpha, lamb=lamb)
            for optimizer in (driven, by_hand):
                train(optimizer, 1, seed=step)
            for schedule in schedules:
                schedule.step()
        assert_same_bits(values(driven), values(by_hand))
        assert differing_bits(values(driven)["0 param"], values(optimizer_of())["0 param"])

    def test_made_after_the_optimizer_was_loaded_it_goes_on_from_where_it_is_loaded(self) -> None:
        optimizer, shape = optimizer_of(), Linear(end=0.0, steps=4)
        schedule = Schedule(optimizer, "lamb", shape)
        schedule.step()
        resumed = optimizer_of()
        resumed.load_state_dict(optimizer.state_dict())
        again = Schedule(resumed, "lamb", shape)
        again.load_state_dict(schedule.state_dict())
        assert again.get_last_values() == [resumed.param_groups[0]["lamb"]] == [1.275]
        assert again.state_dict() == schedule.state_dict()

    def test_last_epoch_goes_on_from_what_a_group_was_at_first(self) -> None:
        optimizer = optimizer_of()
        shape = Linear(end=0.0, steps=4)
        course(Schedule(optimizer, "lamb", shape), 2)
        assert Schedule(optimizer, "lamb", shape, last_epoch=2).get_last_values() == [pytest.approx(1.7 / 4)]
        with pytest.raises(ValueError, match=r"param_groups\[0\] has no 'initial_alpha' to go on from"):
            Schedule(optimizer, "alpha", shape, last_epoch=2)

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("lr", 1.0, "for lr there is torch.optim.lr_scheduler"),
            ("alhpa", 1.0, "option must be one of"),
            ("alpha", Linear(end=1.0, steps=9), r"param_groups\[0\]: Invalid alpha value: 1.0 .*\[0, 1\)"),
            ("alpha", WarmUp(5, Constant(1.5)), "Invalid alpha value: 1.5"),
            ("weight_decay", Cosine(end=-0.1, steps=9), "Invalid weight_decay value: -0.1"),
            ("lamb", lambda step, initial: math.nan, "Invalid lamb value: nan"),
            ("lamb", "2.0", "must be a number or a function"),
            ("lamb", True, "must be a number or a function"),
            ("lamb", lambda step, initial: torch.ones(2), r"1-element, got shape \[2\]"),
            ("lamb", [1.0], "lamb has 1 schedules for 2 groups"),
        ],
    )
    def test_what_is_out_of_range_is_refused_before_anything_changes(self, option, value, message) -> None:
        optimizer = optimizer_of({}, {})
        before = copy.deepcopy([{**group, "params": None} for group in optimizer.param_groups])
        with pytest.raises((TypeError, ValueError), match=message):
            Schedule(optimizer, option, value)
        assert [{**group, "params": None} for group in optimizer.param_groups] == before

    def test_what_counts_for_nothing_is_not_driven(self) -> None:
        optimizer = compat.GrokAdamW([new_param(2)])
        for make in (lambda: Schedule(optimizer, "alpha", 0.5), lambda: GrokkingSignal(optimizer)):
            with pytest.raises(ValueError, match="alpha in the groups of this GrokAdamW counts for nothing"):
                make()
        Schedule(optimizer, "lamb", 0.5)
        assert optimizer.param_groups[0]["lamb"] == 0.5

    def test_a_function_that_leaves_the_range_later_changes_nothing_either(self) -> None:
        optimizer = optimizer_of({}, {})
        schedule = Schedule(optimizer, "alpha", [0.5, lambda step, initial: 0.4 + 0.3 * step])
        schedule.step()
        with pytest.raises(ValueError, match=r"param_groups\[1\]: Invalid alpha value: 1.0"):
            schedule.step()
        assert schedule.last_epoch == 1
        assert [group["alpha"] for group in optimizer.param_groups] == [0.5, 0.7]

    def test_a_tensor_that_someone_writes_is_overwritten_and_one_to_start_from_refused(self) -> None:
        optimizer = optimizer_of()
        schedule = Schedule(optimizer, "lamb", Linear(end=0.0, steps=2))
        optimizer.param_groups[0]["lamb"] = torch.tensor(9.0)
        schedule.step()
        assert optimizer.param_groups[0]["lamb"] == 0.85
        with pytest.raises(TypeError, match="optimizer must be an optimizer, got list"):
            Schedule([new_param(2)], "lamb", 1.0)


def run_of() -> tuple[GrokAdamW, dict]:
    """An optimizer under schedules of ours and of torch's."""
    optimizer = optimizer_of({}, {"lr": 1e-2, "alpha": 0.8})
    return optimizer, {
        "lamb": Schedule(optimizer, "lamb", WarmUp(3, Cosine(end=0.1, steps=9))),
        "decay": Schedule(optimizer, "weight_decay", Linear(end=0.0, steps=10)),
        "signal": GrokkingSignal(optimizer, rate=0.5),
        "lr": lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer, 0.1), lr_scheduler.CosineAnnealingLR(optimizer, 8)],
            [4],
        ),
    }


def advance(optimizer, schedules, begin: int, end: int, order: tuple[str, ...]) -> None:
    for step in range(begin, end):
        train(optimizer, 1, seed=step)
        for name in order:
            if name == "signal":
                schedules[name].update(torch.tensor(1.0 / (1 + step)), 1.0)
            else:
                schedules[name].step()


NAMES = ("lamb", "decay", "signal", "lr")


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR's own
class TestTogether:
    def test_the_order_of_calls_does_not_matter(self) -> None:
        found = []
        for order in permutations(NAMES):
            optimizer, schedules = run_of()
            advance(optimizer, schedules, 0, 6, order)
            found.append(values(optimizer))
        for other in found[1:]:
            assert_same_bits(found[0], other)

    @pytest.mark.parametrize(
        "order", list(permutations(("optimizer", "lamb", "decay", "signal"))), ids=" ".join
    )
    def test_a_resumed_run_is_the_uninterrupted_one_in_whatever_order_it_is_loaded(self, order) -> None:
        optimizer, schedules = run_of()
        advance(optimizer, schedules, 0, 5, NAMES)
        saved = through_a_file({"optimizer": optimizer.state_dict()})
        saved |= {name: copy.deepcopy(schedule.state_dict()) for name, schedule in schedules.items()}
        saved |= through_a_file({name: saved[name] for name in ("lamb", "decay", "signal")})
        params = [group["params"][0].detach().clone() for group in optimizer.param_groups]
        advance(optimizer, schedules, 5, 12, NAMES)

        resumed, again = run_of()
        for group, param in zip(resumed.param_groups, params, strict=True):
            group["params"][0].data.copy_(param)
        again["lr"].load_state_dict(saved["lr"])
        for name in order:
            (resumed if name == "optimizer" else again[name]).load_state_dict(saved[name])
        advance(resumed, again, 5, 12, NAMES)
        assert_same_bits(values(optimizer), values(resumed))
        assert [schedules[n].state_dict() for n in NAMES[:3]] == [again[n].state_dict() for n in NAMES[:3]]

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            ({"option": "alpha"}, "is of 'alpha', this one drives 'lamb'"),
            ({"base_values": [1.0]}, "has 2 groups, base_values is"),
            ({"base_values": [1.0, math.inf]}, r"param_groups\[1\]: Invalid lamb value: inf"),
            ({"last_epoch": -1}, "last_epoch must be an integer >= 0, got -1"),
        ],
    )
    def test_a_state_dict_that_does_not_fit_changes_nothing(self, edit, message) -> None:
        optimizer, schedules = run_of()
        saved = schedules["lamb"].state_dict()
        with pytest.raises(ValueError, match=message):
            schedules["lamb"].load_state_dict({**saved, **edit})
        with pytest.raises(ValueError, match="a state dict must be one of Schedule"):
            schedules["lamb"].load_state_dict(schedules["signal"].state_dict())
        assert schedules["lamb"].state_dict() == saved
        assert [group["lamb"] for group in optimizer.param_groups] == [0.0, 0.0]


class TestGrokkingSignal:
    @pytest.mark.parametrize(
        "make", [float, torch.tensor, lambda loss: torch.tensor([loss])], ids=["float", "[]", "[1]"]
    )
    def test_alpha_falls_with_the_share_by_which_validation_is_worse(self, make) -> None:
        optimizer = optimizer_of({}, {"alpha": 0.5})
        signal = GrokkingSignal(optimizer, rate=0.3)
        assert signal.update(make(0.5), make(2.0)) == 0.75
        expected = [0.93 * math.exp(-0.3 * 0.75), 0.5 * math.exp(-0.3 * 0.75)]
        assert [group["alpha"] for group in optimizer.param_groups] == expected
        assert signal.update(make(2.0), make(0.5)) == 0.0  # from the initial value, not from the last
        assert [group["alpha"] for group in optimizer.param_groups] == [0.93, 0.5]

    def test_it_is_the_signal_of_grokadamw(self, grokadamw) -> None:
        for train_loss, val_loss in [(0.0, 0.0), (0.0, 3.0), (3.0, 0.0), (0.1, 7.3), (2.0, 2.0), (7.3, 0.1)]:
            assert grokking_signal(train_loss, val_loss) == grokadamw._default_grokking_signal(
                train_loss, val_loss
            )

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (math.nan, "got nan"),
            (math.inf, "got inf"),
            (-0.5, "got -0.5"),
            (torch.tensor(math.nan), "got nan"),
            (torch.ones(2), r"got shape \[2\]"),
            (None, "got None"),
            ("1", "got '1'"),
            (True, "got True"),
        ],
        ids=str,
    )
    def test_what_is_no_loss_is_refused_by_name(self, loss, message) -> None:
        optimizer = optimizer_of()
        signal = GrokkingSignal(optimizer)
        signal.update(1.0, 2.0)
        before = optimizer.param_groups[0]["alpha"]
        for name, losses in (("train_loss", (loss, 1.0)), ("val_loss", (1.0, loss))):
            with pytest.raises(
                (TypeError, ValueError), match=f"{name} must be a finite number >= 0.*{message}"
            ):
                signal.update(*losses)
        assert (optimizer.param_groups[0]["alpha"], signal.signal) == (before, 0.5)

    @pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, None, True])
    def test_a_rate_out_of_range_is_refused(self, rate) -> None:
        with pytest.raises((TypeError, ValueError), match="rate must be a finite number >= 0"):
            GrokkingSignal(optimizer_of(), rate)
