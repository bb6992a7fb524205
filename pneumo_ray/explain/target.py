"""The class that a map explains."""

from typing import Literal

Target = Literal["predicted", "pneumonia", "normal"]
"""The class that a map explains: pneumonia (the logit), normal (its negative) or the predicted class."""
