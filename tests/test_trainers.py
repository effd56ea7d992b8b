"""Trainers that others wrote drive the optimizers: docs/trainers.md is true, a resumed run the same run."""

from typing import Any

import pytest
import torch
from stepping import OPTIONS, values
from trainer_snippets import SNIPPETS, installed, on_the_cpu_in_an_empty_folder, run, same

from grokfused import GrokAdamW, compat

__all__ = ["on_the_cpu_in_an_empty_folder"]  # a fixture of every test here
GROKADAMW = 'From optim="grokadamw"'
# What turns that snippet back into where it comes from.
WITH_GROKADAMW = {
    "optimizer_cls_and_kwargs=(GrokAdamW, options),": "",
    'report_to="none"': 'report_to="none", optim="grokadamw", learning_rate=3e-3',
}


@pytest.fixture
def accelerate() -> Any:
    found = installed("accelerate")
    yield found
    found.state.AcceleratorState._reset_state(reset_partial_state=True)  # a process has only one


def test_there_is_a_snippet_for_each_trainer() -> None:
    trainers = ["Accelerate", "Lightning", "TRL", "sentence-transformers", "PEFT", "timm"]
    assert list(SNIPPETS) == ["Hugging Face", GROKADAMW, *trainers, "Wrappers that share groups"]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def _installed(self, accelerate) -> None:
        installed("transformers")

    def test_a_resumed_run_is_the_uninterrupted_one(self) -> None:
        whole = run("Hugging Face")["trainer"].optimizer
        resumed = run("Hugging Face", {"train()": 'train("run/checkpoint-2")'})["trainer"].optimizer
        found = values(whole)
        assert found["0 step"].item() == 4
        assert "0 grad_ema" in found
        assert same(found, values(resumed))

    def test_the_options_arrive(self) -> None:
        optimizer = run("Hugging Face", {"max_steps=4": "max_steps=1"})["trainer"].optimizer
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
        for group in optimizer.param_groups:
            assert (group["initial_lr"], group["alpha"], group["lamb"]) == (3e-3, 0.98, 2.0)

    def test_masks_and_bfloat16_states_survive(self) -> None:
        import transformers

        class Pruning(transformers.TrainerCallback):
            def on_train_begin(self, args, state, control, optimizer, **others) -> None:
                if state.global_step == 0:  # a resumed run has its masks already
                    params = optimizer.param_groups[0]["params"]
                    optimizer.optimizer.set_masks({param: param > 0 for param in params})

        def trained(resume: str) -> Any:
            edits = {
                '"lamb": 2.0': '"lamb": 2.0, "state_dtype": "bfloat16"',
                "trainer.train()": f"trainer.add_callback(Pruning()); trainer.train({resume})",
            }
            return run("Hugging Face", edits, Pruning=Pruning)["trainer"].optimizer

        whole = trained("")
        assert same(values(whole), values(trained("'run/checkpoint-2'")))
        masks = whole.optimizer.masks()
        assert masks
        assert not any(param[~kept].any() for param, kept in masks.items())


@pytest.mark.filterwarnings(
    "ignore:'pin_memory' argument is set as true", "ignore:.*(amp.autocast|CUDA is not available)"
)
class TestFromGrokadamw:
    @pytest.fixture(autouse=True)
    def _installed(self, accelerate, grokadamw) -> None:
        installed("transformers")

    def test_a_resumed_run_is_the_uninterrupted_one(self) -> None:
        whole = run(GROKADAMW)["trainer"].optimizer
        resumed = run(GROKADAMW, {"train()": 'train("run/checkpoint-2")'})["trainer"].optimizer
        assert type(whole.optimizer) is compat.GrokAdamW
        assert [group["weight_decay"] for group in whole.param_groups] == [0.1, 0.0]
        found = values(whole)
        assert found["0 step"].item() == 4
        assert same(found, values(resumed))

    @pytest.mark.slow
    def test_the_options_are_what_the_trainer_gives_grokadamw(self, grokadamw) -> None:
        found = run(GROKADAMW, WITH_GROKADAMW | {"max_steps=4": "max_steps=1"})
        theirs = found["trainer"].optimizer.optimizer
        assert type(theirs) is grokadamw
        ours = compat.GrokAdamW(found["trainer"].model.parameters(), **found["options"])
        left = {"weight_decay"}  # which comes with the groups
        assert {name: ours.defaults[name] for name in theirs.defaults if name not in left} == {
            name: value for name, value in theirs.defaults.items() if name not in left
        }

    def test_a_checkpoint_of_grokadamw_is_resumed(self) -> None:
        run(GROKADAMW, WITH_GROKADAMW | {"max_steps=4": "max_steps=2"})
        saved = torch.load("run/checkpoint-2/optimizer.pt", weights_only=True)
        assert saved["state"] == {}
        resumed = run(GROKADAMW, {"train()": 'train("run/checkpoint-2")'})["trainer"].optimizer
        steps = [resumed.state[p]["step"].item() for group in resumed.param_groups for p in group["params"]]
        assert steps == [4] * sum(len(group["params"]) for group in saved["param_groups"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of their own
@pytest.mark.parametrize(
    ("title", "package"), [("TRL", "trl"), ("sentence-transformers", "sentence_transformers")]
)
def test_trainers_built_on_it_resume_alike(accelerate, title, package) -> None:
    installed(package)
    whole = run(title)["trainer"].optimizer
    resumed = run(title, {"train()": 'train("run/checkpoint-2")'})["trainer"].optimizer
    assert type(whole.optimizer) is GrokAdamW
    assert [group["initial_lr"] for group in whole.param_groups] == [3e-3] * len(whole.param_groups)
    found = values(whole)
    assert found["0 step"].item() == 4
    assert "0 grad_ema" in found
    assert same(found, values(resumed))


class TestAccelerate:
    def test_a_reloaded_run_is_the_uninterrupted_one(self, accelerate) -> None:
        found = run("Accelerate")
        optimizer, batches = found["optimizer"], torch.randn(3, 8, 4)
        saved = values(optimizer)
        assert saved["0 step"].item() == 2
        found["train"](batches)
        whole = values(optimizer)
        assert not same(whole, saved)
        found["accelerator"].load_state("run")
        assert same(values(optimizer), saved)
        found["train"](batches)
        assert same(values(optimizer), whole)

    @pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16", "amsgrad": True}], ids=str)
    def test_prepared_before_the_first_step_it_steps_as_without(self, accelerate, options) -> None:
        results = []
        for prepared in (False, True):
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 2)
            optimizer = GrokAdamW(model.parameters(), **OPTIONS, **options)
            optimizer.set_mask(model.weight, model.weight > 0)
            stepped = accelerate.Accelerator().prepare(optimizer) if prepared else optimizer
            for inputs in torch.randn(3, 8, 4):
                stepped.zero_grad()
                model(inputs).square().mean().backward()
                stepped.step()
            results.append(values(optimizer))
        assert same(*results)

    @pytest.mark.parametrize("opted_out", [False, True])
    def test_an_overflow_changes_nothing_and_is_told_on_the_opt_out(self, accelerate, opted_out) -> None:
        accelerate.Accelerator()
        param = torch.ones(5, requires_grad=True)
        optimizer = GrokAdamW([param], **OPTIONS, unscales_grads=not opted_out)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        wrapped = accelerate.optimizer.AcceleratedOptimizer(optimizer, scaler=scaler)
        told, found = [], []
        for factor in (1.0, float("inf"), 1.0):
            wrapped.zero_grad()
            scaler.scale((param * factor).sum()).backward()
            wrapped.step()
            told.append(wrapped.step_was_skipped)
            found.append(values(optimizer))
        assert told == [False, opted_out, False]
        assert same(found[0], found[1])
        assert not same(found[1], found[2])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_peft_trains_what_it_has_added_and_no_more() -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    found = run("PEFT")
    adapters = [param for param in found["model"].parameters() if param.requires_grad]
    assert len(adapters) == 4
    assert {id(param) for param in found["optimizer"].state} == {id(param) for param in adapters}


def test_timm_makes_groups_of_its_own() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    optimizer = run("timm")["optimizer"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.1]
    assert [group["alpha"] for group in optimizer.param_groups] == [0.98, 0.98]
    assert values(optimizer)["0 step"].item() == 1


class TestWrappersThatShareGroups:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("pytorch_optimizer", reason="it is not installed (pip install '.[bench]')")

    def test_the_snippet_steps_with_the_alpha_of_each(self) -> None:
        found = run("Wrappers that share groups")
        optimizer = found["optimizer"]
        assert optimizer.param_groups[0]["alpha"] == pytest.approx(9.0)
        assert optimizer.base_optimizer.param_groups[0]["alpha"] == 0.98
        assert values(optimizer.base_optimizer)["0 step"].item() == 4

    @pytest.mark.parametrize("gamma", [0.9, 0.4])
    def test_an_alpha_of_the_wrappers_is_never_taken_for_ours_unnoticed(self, gamma) -> None:
        from pytorch_optimizer import WSAM

        model = torch.nn.Linear(4, 2)
        words = (
            r"'alpha': .* stands in the parameter groups that WSAM shares, and is read as an option of Grok"
        )
        with pytest.raises(ValueError, match=words) if gamma == 0.9 else pytest.warns(match=words):
            WSAM(model, model.parameters(), GrokAdamW, lr=3e-3, gamma=gamma)

    def test_options_that_pass_through_the_wrapper_are_ours(self) -> None:
        from pytorch_optimizer import SAM

        model = torch.nn.Linear(4, 2)
        optimizer = SAM(model.parameters(), GrokAdamW, lr=3e-3, alpha=0.5, seed=3)  # warnings are errors
        assert optimizer.base_optimizer.param_groups[0]["alpha"] == 0.5
        assert optimizer.base_optimizer.param_groups[0] is optimizer.param_groups[0]
