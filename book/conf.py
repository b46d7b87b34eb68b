"""The book: `python3 tasks.py book`. Source folder: the repository's root, so that chapters and pages are one book.

Nothing in the built pages comes from the network: fonts are the system's, formulas and icons are files of the book.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "book" / "_ext")]

project = "minillm"
author = "The minillm contributors"
copyright = "The minillm contributors. Text and figures: CC BY 4.0, code: Apache 2.0"
html_title = "minillm"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "course_pages",
    "docstrings",
    "figures",
    "mathjax",
    "sources",
]
include_patterns = ["book/*.md", "chapters/*.ipynb"]
exclude_patterns = ["book/_build", "**/.ipynb_checkpoints"]
root_doc = "book/index"

# ---- text: the Markdown of Jupyter and code hosts, and a little more in the book's own pages

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "off"  # committed outputs are what a reader sees
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # Markdown outputs: tables and highlighted code
suppress_warnings = ["mystnb.unknown_mime_type", "myst.strikethrough"]

# Loaded if a notebook holds widgets; the chapters hold none, and the default is a CDN.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

# ---- the API reference

autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
python_display_short_literal_types = True

# ---- how it looks

html_theme = "sphinx_book_theme"
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "show_navbar_depth": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "use_repository_button": False,
    "use_edit_page_button": False,
    "use_issues_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "logo": {"text": "minillm"},
    "navbar_persistent": [],
}
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = [("graph.js", {"defer": "defer"})]
html_favicon = "_static/favicon.svg"
html_copy_source = True
html_show_sphinx = False
html_last_updated_fmt = None
html_permalinks_icon = "#"
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}, "chtml": {"displayAlign": "center"}}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
