"""Sets of scores that are compared, with the facts of how they were made and the names that readers know them by."""

from collections.abc import Sequence
from dataclasses import dataclass

from pneumo_ray.evaluate.scores import Scores, fact
from pneumo_ray.records import JsonObject

EXACT = "exact"
"""What stands for the number of passes where there are none."""


@dataclass(frozen=True)
class Scored:
    """A folder of scores, and what its rows were made with."""

    name: str
    scores: Scores
    """Of images that did not fail, joined with label and patient."""
    model_hash: str
    posterior: str
    passes: str
    networks: frozenset[str]
    """Hashes of the members of an ensemble; of one model its own."""
    images: str = ""
    """Name of the archive that was scored."""

    @classmethod
    def of(cls, name: str, scores: Scores, run: JsonObject) -> "Scored":
        """Return scores with the facts of their `_run.json`; those of earlier versions are of dropout."""
        members, model_hash = fact(run, "model", "members"), str(fact(run, "model", "hash"))
        return cls(
            name=name,
            scores=scores,
            model_hash=model_hash,
            posterior=str(fact(run, "config", "posterior") or "dropout"),
            passes=str(fact(run, "config", "passes")),
            networks=frozenset(members if isinstance(members, list) else [model_hash]),
            images=_archive_of(run) or name,
        )

    @property
    def members(self) -> int:
        """Networks that were scored as one."""
        return len(self.networks)

    @property
    def is_exact(self) -> bool:
        """Whether its moments are closed forms."""
        return self.passes == EXACT

    @property
    def title(self) -> str:
        """What a reader calls it."""
        single = "Laplace" if self.posterior == "laplace" else self.posterior
        what = f"ensemble of {self.members}, {single}" if self.members > 1 else single
        return f"{what}, {EXACT if self.is_exact else f'{self.passes} passes'}"


def titles(sets: Sequence[Scored]) -> list[str]:
    """Return the title of each set, with its folder where another has the same."""
    plain = [one.title for one in sets]
    return [
        f"{title} ({'/'.join(one.name.rstrip('/').split('/')[-2:])})" if plain.count(title) > 1 else title
        for one, title in zip(sets, plain, strict=True)
    ]


def _archive_of(run: JsonObject) -> str:
    """Return a short name of what was scored: the folder of the manifest, or the last two parts of an archive's address."""
    manifest, archives = fact(run, "config", "manifest"), fact(run, "config", "archive")
    if isinstance(manifest, str):
        *folders, file = manifest.split("/")
        return folders[-1] if folders and file == "manifest.parquet" else file
    if not isinstance(archives, list):
        return ""
    return ", ".join("/".join(str(one).split("?")[0].rstrip("/").split("/")[-2:]) for one in archives)
