"""Alternative text for the figures of notebooks, and a build that fails when a picture has none.

A figure's text travels in its output's metadata, {"image/png": {"alt": "..."}}, where `minillm.plots.show` puts it.
myst-nb names the file of a picture after the SHA-256 of its bytes, and this is how the two find each other.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)


def alternative_texts(notebook: dict[str, Any]) -> dict[str, str]:
    """Alternative text by SHA-256 of the PNG, for every output of a notebook that carries one."""
    texts = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            png = output.get("data", {}).get("image/png")
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if png and alt:
                texts[hashlib.sha256(b64decode("".join(png))).hexdigest()] = alt
    return texts


class AlternativeText(SphinxPostTransform):
    default_priority = 5  # before pictures are copied and renamed

    def run(self, **kwargs: Any) -> None:
        source = Path(self.env.doc2path(self.env.docname))
        texts = {}
        if source.suffix == ".ipynb":
            texts = alternative_texts(json.loads(source.read_text(encoding="utf-8")))
        for image in self.document.findall(nodes.image):
            alt = texts.get(Path(image["uri"]).stem)
            if alt:
                image["alt"] = alt
            if not image.get("alt", "").strip():
                logger.warning("a picture without alternative text: %s", image["uri"], location=self.env.docname)


def check_built_pages(app: Sphinx, error: Exception | None) -> None:
    """Warn of every <img> in the finished pages that says nothing, raw HTML in a chapter included."""
    if error or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        for tag in re.findall(r"<img\b[^>]*>", page.read_text(encoding="utf-8")):
            if not re.search(r"""\balt=(["'])(?!\s*\1)""", tag):
                logger.warning("%s: a picture without alternative text: %s", page.relative_to(app.outdir), tag[:120])


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(AlternativeText)
    app.connect("build-finished", check_built_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
