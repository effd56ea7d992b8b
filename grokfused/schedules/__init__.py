"""alpha, lamb and weight_decay over steps, as torch.optim.lr_scheduler has lr; and alpha by the losses.

Whoever is here writes plain floats into parameter groups, between steps: the step itself knows of no
schedule.
"""

from grokfused.schedules.losses import GrokkingSignal, grokking_signal
from grokfused.schedules.schedule import Schedule
from grokfused.schedules.shapes import Constant, Cosine, Linear, WarmUp

__all__ = ["Constant", "Cosine", "GrokkingSignal", "Linear", "Schedule", "WarmUp", "grokking_signal"]
