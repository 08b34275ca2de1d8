"""The site of the documentation: `make docs` builds it into build/docs.

Pages are Markdown that reads as well where the repository is browsed; the reference is made from docstrings.
`docs/_site` holds what Sphinx does not do by itself.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
sys.path.insert(0, str(ROOT))

# As in the tests: nothing is read from a network, and what is computed is computed on the CPU. Notebooks inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

import maskattn  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
version = release = maskattn.__version__
author = "the maskattn developers"
copyright = author
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "_site.annotations",
    "_site.aliases",
    "_site.code",
    "_site.complete",
    "_site.constants",
    "_site.docstrings",
    "_site.links",
]
exclude_patterns = ["_site"]

# Pages: Markdown as GitHub renders it, with its anchors of headings.
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings: list[str] = []

# Notebooks are run whenever the site is built, from nothing, and a cell that raises fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
# No scripts of other hosts for widgets, which no notebook here has.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

# The reference: docstrings in Google's style, types as they are written, beside the arguments that they are of.
autodoc_default_options = {"members": True, "special-members": "__call__", "member-order": "bysource"}
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
default_role = "name"
add_module_names = False
smartquotes = False
nitpicky = True
# What stands between backquotes is a link where the reference has such a name, and code where it has none. What begins
# with the library's own name must be there.
nitpick_ignore_regex = [(r"py:.*", r"(?s)(?!maskattn(_jax|_torch)?(\.[a-z]\w*)*\.\w+$).*")]

html_theme = "furo"
html_title = "maskattn"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

linkcheck_timeout = 20
linkcheck_retries = 2

# Where a page links to a file of the repository: its place in the source browser, where pyproject.toml names one.
repository = PROJECT.get("urls", {}).get("Source", "")
