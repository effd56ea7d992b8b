"""Names and signatures of others, on this project's step: for code that comes from there.

Import it by its name. ``docs/migration.md`` says what becomes of each argument.
"""

from grokfused.compat.gradfilter import gradfilter_ema, gradfilter_ma
from grokfused.compat.grokadamw import GrokAdamW

__all__ = ["GrokAdamW", "gradfilter_ema", "gradfilter_ma"]
