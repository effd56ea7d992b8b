"""Lightning drives the optimizers: docs/trainers.md is true, a resumed run the same run."""

from typing import Any

import pytest
import torch
from stepping import values
from torch import Tensor
from trainer_snippets import installed, on_the_cpu_in_an_empty_folder, run, same

__all__ = ["on_the_cpu_in_an_empty_folder"]  # a fixture of every test here


# torch finds that Lightning's tree functions are those of an older torch; the others are Lightning's advice
# to larger runs.
@pytest.mark.filterwarnings(
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:Starting from v1.9.0, `tensorboardX` has been removed",
    "ignore:Precision .* is not supported by the model summary",
)
class TestLightning:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        installed("lightning")

    def train(self, edits: dict[str, str] | None = None, **names: Any) -> torch.optim.Optimizer:
        found = run("Lightning", edits, **names)
        return found["trainer"].optimizers[0]

    def by_hand(self, mixed: torch.dtype, scaler: torch.amp.GradScaler | None, clip: bool = True) -> Any:
        """Does what the snippet does, without Lightning."""
        found = run("Lightning", {"trainer.fit(Model(), data)": "model = Model()"})
        model, optimizer = found["model"], found["model"].configure_optimizers()
        for inputs in found["data"]:
            optimizer.zero_grad()
            with torch.autocast("cpu", mixed):
                loss = model.training_step(inputs, 0)
            (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is not None:
                scaler.unscale_(optimizer)
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        return optimizer

    def fp16(self, scaler: torch.amp.GradScaler) -> dict[str, Any]:
        """Returns the edit and the name for float16 under a loss scale: Lightning's own is for GPUs."""
        from lightning.pytorch.plugins import MixedPrecision

        edits = {'precision="bf16-mixed"': "plugins=[plugin]"}
        return {"edits": edits, "plugin": MixedPrecision("16-mixed", "cpu", scaler)}

    def test_the_snippet_trains_as_a_loop_written_by_hand(self) -> None:
        found = values(self.train())
        assert found["0 step"].item() == 4
        assert same(found, values(self.by_hand(torch.bfloat16, None)))

    def test_a_resumed_run_is_the_uninterrupted_one(self) -> None:
        def trained(epochs: int, checkpoint: str | None) -> dict[str, Tensor]:
            edits = {
                "max_steps=4": f"max_epochs={epochs}, enable_checkpointing=False",
                "data)\n": f"data, ckpt_path={checkpoint!r})\n",
            }
            found = run("Lightning", edits)
            found["trainer"].save_checkpoint("last.ckpt")
            return values(found["trainer"].optimizers[0])

        whole = trained(2, None)
        assert not same(trained(1, None), whole)
        assert same(trained(2, "last.ckpt"), whole)

    def test_clipping_is_refused_without_the_opt_out(self) -> None:
        with pytest.raises(RuntimeError, match="GrokAdamW, does not allow for gradient clipping"):
            self.train({"lamb=2.0, unscales_grads=False": "lamb=2.0"})

    def test_the_opt_out_holds_for_the_wrapper_that_manual_optimization_is_given(self) -> None:
        edits = {
            "super().__init__()": "super().__init__(); self.automatic_optimization = False",
            "return self.layer(batch).square().mean()": (
                "optimizer = self.optimizers(); optimizer.zero_grad(); "
                "self.manual_backward(self.layer(batch).square().mean()); "
                "self.clip_gradients(optimizer, 1.0, 'norm'); optimizer.step()"
            ),
            ", gradient_clip_val=1.0": "",
        }
        assert same(values(self.train(edits)), values(self.by_hand(torch.bfloat16, None)))

    def test_a_mask_set_through_that_wrapper_counts_from_the_next_step_on(self) -> None:
        import lightning

        class Pruning(lightning.Callback):
            def __init__(self) -> None:
                self.kept = []

            def on_train_batch_start(self, trainer, model, batch, number) -> None:
                weight, optimizer = model.layer.weight, model.optimizers()
                self.kept.append(weight.count_nonzero().item())
                if number == 2:
                    optimizer.set_mask(weight, torch.eye(2, 4).bool())
                if number == 3:
                    optimizer.remove_mask(weight)

        pruning = Pruning()
        optimizer = self.train({"max_steps=4": "max_steps=4, callbacks=[pruning]"}, pruning=pruning)
        weight = optimizer.param_groups[0]["params"][0]
        assert [*pruning.kept, weight.count_nonzero().item()] == [8, 8, 8, 2, 8]

    @pytest.mark.parametrize("scale", [1024.0, 2.0**120], ids=["no overflow", "overflows"])
    def test_under_a_loss_scale_clipped_gradients_are_the_true_ones(self, scale) -> None:
        ours, theirs = (torch.amp.GradScaler("cpu", init_scale=scale) for _ in range(2))
        found = values(self.train(**self.fp16(ours)))
        assert same(found, values(self.by_hand(torch.float16, theirs)))
        assert ours.get_scale() == theirs.get_scale()
        assert (ours.get_scale() < scale) == (scale > 1024)

    def test_without_clipping_the_gradients_are_unscaled_in_the_step(self) -> None:
        scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
        setting = self.fp16(scalers[0])
        setting["edits"] |= {"lamb=2.0, unscales_grads=False": "lamb=2.0", ", gradient_clip_val=1.0": ""}
        assert same(
            values(self.train(**setting)), values(self.by_hand(torch.float16, scalers[1], clip=False))
        )
