"""Sphinx's settings for both sites: everything in English, and with `-t zh` the guide in Chinese.

`make docs` builds both without a network: theme, formulas and search are local files.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
CHINESE = tags.has("zh")  # noqa: F821 - Sphinx puts `tags` into this file

# The cells' own processes: the guide's drawing functions, and nothing of the reader's machine.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE / "guide"), os.environ.get("PYTHONPATH")]))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for `!gouache`
os.environ["OMP_NUM_THREADS"] = "1"  # the same sums everywhere, and no threads that wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GOUACHE_PROGRESS"] = "off"
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"

# A profile of its own: no start-up files and no history of the reader's, and no line from each kernel that it listens.
profile = ROOT / "build" / "docs" / "ipython" / "profile_default"
profile.mkdir(parents=True, exist_ok=True)
(profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n", encoding="utf-8")
os.environ["IPYTHONDIR"] = str(profile.parent)
for talkative in ("traitlets", "alembic"):
    logging.getLogger(talkative).setLevel(logging.WARNING)

sys.path.insert(0, str(HERE / "_ext"))

project = "gouache"
language = "zh_CN" if CHINESE else "en"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
if CHINESE:
    # The English site, built just before, holds the reference. Addresses between the two are relative.
    INVENTORY = ROOT / "build" / "docs" / "en" / "objects.inv"
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {"gouache": ("../en", str(INVENTORY))} if INVENTORY.exists() else {}
else:
    extensions += ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
extensions.append("gouache_reference")
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_numpy_docstring = False
viewcode_line_numbers = True
add_module_names = False
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
templates_path = ["_templates"]
exclude_patterns = ["_*", "guide/zh/**", "guide/outputs/**", "**/README.md"]
suppress_warnings = ["myst.header"]
default_role = "code"
smartquotes_action = "q"  # an option's two hyphens stay two hyphens

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4
myst_update_mathjax = False

# Both languages share their cells, so the second site takes every output from the first one's executions.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs" / "cache")
nb_execution_in_temp = True
nb_execution_timeout = 900  # seconds a cell, on a machine that has other things to do as well
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
if CHINESE:
    nb_code_prompt_show, nb_code_prompt_hide = "显示代码", "隐藏代码"

html_theme = "furo"
html_title = "gouache"
html_favicon = str(HERE / "_static" / "favicon.svg")
html_use_index = not CHINESE  # the Chinese site has no reference
html_static_path = [str(HERE / "_static")]
html_css_files = ["gouache.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_context = {"chinese": CHINESE}
