"""How Sphinx builds the pages: ``make docs``. Every warning is an error there."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from grokfused import __version__

project = "grokfused"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"grokfused {__version__}"
html_show_copyright = False
templates_path: list[str] = []

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "html_image"]

autodoc_typehints = "none"  # the docstrings say types where they matter, with ranges and units
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_use_ivar = True

# Of other projects, or private: no page here to link to.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|collections|typing|os|grokfused\.(optim|state|step|backends))\b.*")
]


def refuse_undocumented(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Warns, which fails the build, of a public name that has no docstring."""
    from sphinx.util import logging

    if not any(line.strip() for line in lines):
        logging.getLogger(__name__).warning("%s %s is public and has no docstring", what, name)


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", refuse_undocumented)
