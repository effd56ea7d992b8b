"""What the roundings of 16-bit parameters cost and give (arXiv:2010.06192), in a small language model.

The text ships with Python: the language reference that ``help()`` shows. Forward and backward pass are
computed in float32 from the widened parameters, so that runs differ in nothing but how parameters (and
gradients, to the same bits) are stored.
"""

from __future__ import annotations

import torch

from grokfused.lab.data import text_of
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.watch import Watch
from grokfused.lab.rounded_model import FULL, QUICK, Model, Row, Setting

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
KINDS = (
    Row(F32),
    *(Row(dtype, rounding) for dtype in (BF16, F16) for rounding in ("nearest", "stochastic", "kahan")),
    Row(BF16, "stochastic", BF16),
    Row(BF16, "kahan", BF16),
    Row(F32, state_dtype="block8"),
    Row(BF16, "stochastic", "block8"),
    Row(BF16, "kahan", "block8"),
)
ROWS = {row.what: row for row in KINDS}


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains the model; returns its loss on the text held out."""
    model = Model(ROWS[name], seed, setting, text_of(setting.held_out), watch.device)
    for step, loss in enumerate(model.losses(), 1):
        if step % 50 == 0:
            watch.show(step / setting.steps, f"step {step:,}, loss {loss:.3f}")
            watch.save("", dict)  # Ctrl-C ends it; it begins anew, being half a minute
    return {"loss": model.held_out_loss()}


EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(QUICK, tuple(ROWS), (0,)),
        "usual": Size(FULL, tuple(ROWS)),
        "full": Size(FULL, tuple(ROWS), tuple(range(10))),
    },
)
