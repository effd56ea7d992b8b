"""Grokfast's slow-gradient amplification and AdamW in one pass over memory.

``GrokAdamW`` replaces ``torch.optim.AdamW``, ``GrokAdam`` replaces ``torch.optim.Adam``; ``info()`` says
which backends exist on this machine and which one runs.
"""

from grokfused._version import __version__
from grokfused.backends import BackendUnavailable, info
from grokfused.optim.adamw import GrokAdamW
from grokfused.optim.in_backward import step_in_backward
from grokfused.optim.layerwise import layerwise_beta1
from grokfused.optim.optimizer import GrokAdam
from grokfused.state.blocks import decode_state

__all__ = [
    "BackendUnavailable",
    "GrokAdam",
    "GrokAdamW",
    "__version__",
    "decode_state",
    "info",
    "layerwise_beta1",
    "step_in_backward",
]
