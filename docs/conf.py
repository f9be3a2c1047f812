"""Sphinx's configuration: `make docs`. Nothing is fetched; a warning is an error."""

import inspect
import re
from importlib import metadata

project = "hypotheses"
author = "The hypotheses authors"
copyright = f"2026, {author}"
release = metadata.version("hypotheses")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "hypotheses"
html_show_sphinx = False

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may go from its title to what it needs
add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # torch's are its own
autodoc_typehints = "signature"


def laid_out(paragraph: str) -> bool:
    """Whether the layout of a paragraph says something: a table by spaces, a list of arguments, a command."""
    return any(line.startswith(" ") or re.search(r"\S {2,}\S", line) for line in paragraph.splitlines())


def as_rst(docstring: str) -> str:
    """A docstring of the project, which is plain text, as reStructuredText: what is laid out stays as it is, `code` is code."""
    found = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if laid_out(paragraph):
            found += [".. code-block:: text", "", *(f"   {line}" for line in paragraph.splitlines()), ""]
        else:
            words = re.split(r"(`[^`]+`)", paragraph)
            plain = [re.sub(r"([\\*|_<>`])", r"\\\1", word) for word in words]
            code = [f"``{word.strip('`')}``" for word in words]
            found += ["".join(code[i] if i % 2 else plain[i] for i in range(len(words))), ""]
    return "\n".join(found)


def setup(app) -> None:
    def process(app, what, name, obj, options, lines: list[str]) -> None:
        lines[:] = as_rst("\n".join(lines)).splitlines()

    app.connect("autodoc-process-docstring", process)
