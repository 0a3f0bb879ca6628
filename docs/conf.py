"""Configuration of the documentation site: ``make -C docs html``.

The source folder is the repository, so that links between documents are the same on the site and in a checkout.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_extensions")]

import vitfast  # noqa: E402

project = "vitfast"
author = copyright = "The vitfast authors"
release = version = vitfast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "generate",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/*.md",
    "benchmarks/**/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [
    "docs/_build",
    "docs/tutorials",
    ".*",
    "build",
    "dist",
    "runs",
    "csrc",
    "tests",
    "vitfast",
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# only vitfast's public names are checked: the build needs no network, which the inventories of other projects would
nitpick_ignore_regex = [("py:.*", r"(?!vitfast\.[A-Za-z_0-9]+$).*")]

html_theme = "furo"
html_title = f"vitfast {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": "docs/tutorials",
    "gallery_dirs": "docs/auto_tutorials",
    "filename_pattern": r"/docs/tutorials/",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "backreferences_dir": None,
}
