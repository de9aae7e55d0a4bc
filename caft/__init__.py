"""CAFT in plain PyTorch: model, losses, captions, metrics. Needs no cluster.
`create_model` makes one, `load_model` reads one; `localize` and `hierarchy` show what it sees."""

import warnings

from caft.checkpoint import load_model
from caft.localize import hierarchy, localize
from caft.model import CAFT, ImageFeatures, TextFeatures, create_model
from caft.pictures import draw_panel
from caft.reference import from_reference

__version__ = "0.1.0"

__all__ = [
    "CAFT",
    "ImageFeatures",
    "TextFeatures",
    "create_model",
    "draw_panel",
    "from_reference",
    "hierarchy",
    "load_model",
    "localize",
]

# `python -m caft.model describe` finds the module imported here, which is no mistake.
warnings.filterwarnings("ignore", message="'caft.model' found in sys.modules")
