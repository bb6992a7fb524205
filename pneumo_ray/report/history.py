"""The history of the training run, if it is beside the model."""

import json

from pneumo_ray import storage
from pneumo_ray.evaluate.scores import fact
from pneumo_ray.records import JsonObject

_MAX_BYTES = 1 << 24
_NUMBERS = ("epoch", "train_loss", "val_loss", "val_auc", "lr")


def read_history(run: JsonObject) -> list[JsonObject]:
    """Return the records of history.jsonl; empty where it is not beside the model, or not the history of this model.

    Args:
        run: `_run.json` of the scores, which names the model and its epoch.
    """
    model, provenance = fact(run, "config", "model"), fact(run, "model", "provenance")
    if not isinstance(model, str) or not isinstance(provenance, dict):
        return []
    uri = storage.join(storage.parent(model), "history.jsonl")
    try:
        history = [json.loads(line) for line in storage.read_bytes(uri, _MAX_BYTES).splitlines()]
        if not all(isinstance(record[name], int | float) for record in history for name in _NUMBERS):
            return []
        best = [record for record in history if record["best"]][-1]
        same = (best["epoch"], len(history)) == (provenance["best_epoch"], provenance["epochs"])
        auc = provenance["validation"]["auc"]
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return []
    return history if same and auc is not None and abs(best["val_auc"] - auc) < 1e-3 else []
