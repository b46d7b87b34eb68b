"""MathJax from the package sphinx-mathjax-offline: formulas without a network.

That package is an extension too, but copies all of MathJax, 24 MiB with its speech tables; a page loads one script and
the fonts, and these are copied here.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx

SCRIPT = "tex-chtml.js"
FONTS = "output/chtml/fonts/woff-v2"


def packaged_mathjax() -> Path:
    """The folder of MathJax in the installed package. ValueError without the package."""
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("formulas need the package sphinx-mathjax-offline: pip install 'minillm[book]'")
    return Path(spec.submodule_search_locations[0]) / "static" / "mathjax"


def copy(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "mathjax"
    (target / FONTS).mkdir(parents=True, exist_ok=True)
    shutil.copy(packaged_mathjax() / SCRIPT, target)
    for font in (packaged_mathjax() / FONTS).glob("*.woff"):
        shutil.copy(font, target / FONTS)


def setup(app: Sphinx) -> dict[str, bool]:
    packaged_mathjax()
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
