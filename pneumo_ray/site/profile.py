"""site.json: what commissioning found, as one file that scoring applies in extra columns.

It holds numbers and hashes, no name of an image and no patient. Its hash is over its content, so that a change is seen.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.config import read_object
from pneumo_ray.errors import ConfigError
from pneumo_ray.records import JsonObject
from pneumo_ray.site.recalibration import METHODS, Recalibration

FORMAT = "pneumo_ray.site 1"
NEGATIVE, POSITIVE, TO_READ = "negative", "positive", "read"
COLUMNS = ("prob_site", "predicted_site", "triage", "site_hash")

_FREE = ("target", "zones", "refer_z", "amp")
"""Scoring options that change `prob_mean` not at all, or (amp) by rounding."""
_BEFORE = {"posterior": "dropout"}
"""Scoring options that scores of earlier versions do not name, and what they were made with."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SiteProfile:
    """What scoring applies at a site."""

    model_hash: str
    """Of the model whose scores it was made from."""
    method: JsonObject
    """The scoring options, of which `prob_mean` depends on all but those in `_FREE`."""
    recalibration: Recalibration
    threshold: float
    """On `prob_mean`: pneumonia is predicted where `prob_mean >= threshold`."""
    triage_low: float | None
    """On `prob_mean`, called negative below it; None where nothing is promised and every image is to be read."""
    triage_high: float | None
    """On `prob_mean`, called positive from it on."""
    hash: str = ""
    """sha256 (hex) of the whole file."""

    def columns(self, prob_mean: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return the columns of n scored images: `prob_site`, `predicted_site`, `triage` and `site_hash`.

        Args:
            prob_mean: float32 [n], as it stands in the scores.
        """
        prob = prob_mean.astype(np.float64)
        triage = np.full(len(prob), TO_READ, object)
        if self.triage_low is not None and self.triage_high is not None:
            triage[prob < self.triage_low] = NEGATIVE
            triage[prob >= self.triage_high] = POSITIVE
        return {
            "prob_site": self.recalibration.prob(prob).astype(np.float32),
            "predicted_site": (prob >= self.threshold).astype(np.int8),
            "triage": triage,
            "site_hash": np.full(len(prob), self.hash, object),
        }


def write_profile(profile: SiteProfile, facts: JsonObject, uri: str) -> SiteProfile:
    """Write site.json and return the profile with its hash.

    Args:
        profile: what scoring applies.
        facts: what people and programs may want to know beside it: plain finite JSON values.
        uri: of the file.
    """
    applied = asdict(profile)
    del applied["hash"]
    content = json.loads(json.dumps({"format": FORMAT, "applied": applied, **facts}, allow_nan=False))
    digest = _hash(content)
    storage.write_json({**content, "hash": digest}, uri, allow_nan=False)
    return SiteProfile(**{**vars(profile), "hash": digest})


def read_profile(uri: str) -> SiteProfile:
    """Read site.json.

    Raises:
        ConfigError: if it is missing, not of jobs/commission.py, or changed.
    """
    content = read_object("--site", uri, "that jobs/commission.py wrote")
    if content.get("format") != FORMAT:
        raise ConfigError(f"--site {uri} is not a site.json of jobs/commission.py")
    digest = content.pop("hash", None)
    if _hash(content) != digest:
        raise ConfigError(f"--site {uri} has been changed since it was written; commission again, or copy the original")
    try:
        applied = dict(content["applied"])
        found = applied.pop("recalibration")
        if found["method"] not in METHODS:
            raise ValueError(found["method"])
        made = Recalibration(**{**found, "knots": tuple(found["knots"]), "values": tuple(found["values"])})
        return SiteProfile(recalibration=made, hash=str(digest), **applied)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--site {uri} is not a site.json of this version; commission again") from error


def check_model(profile: SiteProfile, uri: str, model_hash: str, method: JsonObject) -> None:
    """Refuse a site.json of another model, or of other scoring options; one that the file does not know counts as equal.

    Raises:
        ConfigError: in one sentence.
    """
    if profile.model_hash != model_hash:
        raise ConfigError(
            f"--site {uri} was made from the scores of another model (hash {profile.model_hash[:12]}, not {model_hash[:12]}); "
            "commission this one with jobs/commission.py"
        )
    if other := other_probabilities(profile.method, method):
        raise ConfigError(
            f"--site {uri} was made from scores with {other}, which give other probabilities; score as then, or "
            "commission again"
        )


def other_probabilities(before: JsonObject, now: JsonObject) -> str | None:
    """Return the first scoring option that differs and on which `prob_mean` depends, as `passes 20 and not 200`, or None.

    Args:
        before: method of some scores; an option that it does not name counts as equal.
        now: method of others.
    """
    for name, value in (_BEFORE | now).items():
        then = before.get(name, _BEFORE.get(name, value))
        if name not in _FREE and then != value:
            return f"{name} {then} and not {value}"
    return None


def _hash(content: JsonObject) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
