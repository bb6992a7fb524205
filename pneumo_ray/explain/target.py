"""The class that a map explains."""

from typing import Literal

Target = Literal["predicted", "pneumonia", "normal"]
"""What a map explains: the logit (pneumonia), its negative (normal), or whichever class the network predicts."""
