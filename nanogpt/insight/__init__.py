"""Analyses of texts, models and finished runs, and the plots and reports made of them."""

import os
from importlib.util import find_spec

# A notebook's MPLBACKEND also reaches commands run in other environments. If its module is not
# installed there, matplotlib refuses to be imported. Our figures are rendered by Agg anyway.
_BACKEND = os.environ.get("MPLBACKEND", "")
if _BACKEND.startswith("module://") and find_spec(_BACKEND[9:].partition(".")[0]) is None:
    del os.environ["MPLBACKEND"]
