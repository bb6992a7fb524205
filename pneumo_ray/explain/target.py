"""What can be asked of an explanation; reading it needs no torch."""

from typing import Literal

Target = Literal["predicted", "pneumonia", "normal"]
"""The class whose evidence a map shows."""

Passes = int | Literal["exact"]
"""Monte Carlo passes, or closed forms without any."""

PosteriorName = Literal["dropout", "laplace"]
"""What the network's weights vary by: the dropout that it was trained with, or the Laplace posterior of its last layer."""

MapKind = Literal["last", "fused"]
"""The maps of the last stage, or these divided among the finer cells of the stage before (`explain/fused.py`)."""
