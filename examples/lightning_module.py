"""Lightning with GrokAdamW: mixed precision, clipping, and lamb on a schedule.

python examples/lightning_module.py     # pip install lightning
"""

import argparse

import lightning
import torch
from torch import nn

from grokfused import GrokAdamW
from grokfused.schedules import Linear, Schedule


class Regression(lightning.LightningModule):
    def __init__(self, steps):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 1))
        self.steps, self.losses = steps, []

    def training_step(self, batch, _):
        loss = (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        # unscales_grads=False: Lightning clips under mixed precision only where it unscales by itself.
        optimizer = GrokAdamW(self.parameters(), lr=3e-3, alpha=0.9, lamb=0.5, unscales_grads=False)
        self.lamb = Schedule(optimizer, "lamb", Linear(end=0.0, steps=self.steps))
        return optimizer

    def on_train_batch_end(self, *_):
        self.lamb.step()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()
lightning.seed_everything(0, verbose=False)
model = Regression(options.steps)
data = torch.utils.data.DataLoader(torch.randn(1024, 16), batch_size=32)
trainer = lightning.Trainer(
    max_steps=options.steps,
    precision="bf16-mixed",
    gradient_clip_val=1.0,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, data)
lamb = trainer.optimizers[0].param_groups[0]["lamb"]
print(
    f"loss {model.losses[0]:.3f} to {model.losses[-1]:.3f} in {options.steps} steps; lamb is {lamb:.2f} now"
)
