"""Start of a scoring job: list of images, model, method and compilation, shared by all its runs.

These decisions are written before the first image is scored, so that a continued run repeats none of them
and a folder never contains the scores of two jobs.
"""

from dataclasses import dataclass

from pneumo_ray import storage
from pneumo_ray.anatomy.segmenter import own_segmenter
from pneumo_ray.config import save_config
from pneumo_ray.console import log
from pneumo_ray.data.lungs import has_lungs, segmenter_of
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.dicomweb.images import fingerprint, private_of
from pneumo_ray.errors import ConfigError, StorageError
from pneumo_ray.evaluate.scores import fact
from pneumo_ray.images.fit import OF_LUNGS
from pneumo_ray.model import Preprocessing
from pneumo_ray.ray_cluster import living_nodes, on_each_node
from pneumo_ray.run_folder import RunFolder
from pneumo_ray.score.config import ExplainConfig, ZoneMode
from pneumo_ray.score.explainer import ModelPayload
from pneumo_ray.score.foreign import ForeignSet, ForeignSource
from pneumo_ray.score.image_list import Source, list_fingerprint, open_source, write_list
from pneumo_ray.score.listing import list_images, manifest_images
from pneumo_ray.score.model_set import ModelSet, load_models
from pneumo_ray.site.profile import check_model, read_profile


@dataclass(frozen=True)
class Job:
    """The facts that all runs of a job share."""

    source: Source
    compiled: bool | None
    """Whether an earlier run compiled the networks; None before the first."""


def models_of(config: ExplainConfig) -> ModelSet | ForeignSet:
    """Read the models of a job, or make the network of others.

    Raises:
        ModelError: if a model is missing or damaged, they cannot be scored as one, or the user's function makes no network.
        ConfigError: if there is no such function.
    """
    if config.foreign is None:
        return load_models(config.model, config.posterior)
    source = ForeignSource(config.foreign, str(config.layer))
    return ForeignSet(source, source.make())


def zones_of(config: ExplainConfig, preprocessing: Preprocessing) -> ZoneMode:
    """Return the zones that a job takes where none are asked for: those of the lungs, where they are to be had.

    Raises:
        ManifestError: if the manifest cannot be read.
    """
    if preprocessing.fit in OF_LUNGS:
        return "lungs"
    if config.manifest is None or config.zones is not None:
        return "image"
    return "lungs" if has_lungs(read_manifest(storage.absolute(config.manifest))).any() else "image"


def check_method(config: ExplainConfig, models: ModelSet | ForeignSet) -> None:
    """Refuse what no worker could do, before anything is written.

    Raises:
        ModelError: if a model has nothing to sample or no finer stage to fuse with, or lungs are to be found and there is no segmenter.
        ConfigError: if float16 is asked for on a CPU, or the site.json is of another model or other passes.
    """
    assert config.passes is not None, "the config is resolved"
    models.check(config.passes, config.seed)
    models.map_size_of(config.maps)
    if config.finds_lungs(models.preprocessing.fit):
        own_segmenter()
    if sentence := _other_segmenter(config, models):
        log(sentence)
    if config.site is not None:
        check_model(read_profile(config.site), config.site, models.hash, config.method)
    if config.amp == "fp16" and not config.scale.use_gpu:
        raise ConfigError("--amp fp16 needs --scale.use-gpu; use bf16, auto or off")


def _other_segmenter(config: ExplainConfig, models: ModelSet | ForeignSet) -> str | None:
    """Return a warning if the model is given lungs that another segmenter has found than those it was trained on."""
    trained = fact(models.facts(), "provenance", "manifest", "segmenter")
    if models.preprocessing.fit not in OF_LUNGS or trained is None:
        return None
    manifest = None if config.manifest is None else read_manifest(storage.absolute(config.manifest))
    if manifest is not None and has_lungs(manifest).any():
        found, whose = segmenter_of(manifest), "that of the manifest"
    else:
        found, whose = own_segmenter().hash, "that of this installation"
    if found in (None, trained):
        return None
    return (
        f"warning: the model was trained on the lungs that the segmenter {trained[:12]} found, and is given those of {found[:12]}, "
        f"{whose}; prepare the archive with --lungs and the lungs.safetensors of the training, and give its manifest"
    )


def begin(config: ExplainConfig, folder: RunFolder, model: ModelPayload) -> Job:
    """Return the job in the folder, or start a new one.

    Raises:
        ConfigError: if the folder holds the scores of another model, config or archive.
        PneumoError: if the images cannot be listed.
    """
    size = model.preprocessing.image_size
    site = None if config.site is None else read_profile(config.site).hash
    listed = None
    private = private_of(config.archive, folder.out, config.uids)
    images: list[str] | str = [storage.absolute(archive) for archive in config.archive]
    if private is not None and private.uids:
        images = [*images, f"uids {fingerprint(private.uids, private.salt)}"]
    if config.manifest is not None:
        listed = manifest_images(config.manifest, model.preprocessing, boxes=config.zones == "box")
        images = list_fingerprint(listed)
    names = storage.join(folder.out, "_job", "pictures.parquet")
    # The list is written before the record: where that is, both are whole.
    before = folder.read(("model", "pictures", "config", "method"))
    if before is not None:
        folder.refuse_other("the scores of another model", before["model"], model.facts.model_hash)
        folder.refuse_other("the scores of another archive or manifest", before["pictures"], images)
        folder.refuse_other_options({"maps": "last"} | before["method"], {"maps": config.maps} | config.method)
        folder.refuse_other("scores with another site.json, or without one", before.get("site"), site)
        folder.refuse_other("scores made by another version", before["config"], config.config_hash)
        return Job(open_source(names, size), before.get("compiled"))
    out = folder.out
    if any(name.endswith(".parquet") for name in storage.list_files(out)):
        raise ConfigError(f"{out} contains Parquet files of another program; choose another --out")
    source = list_images(config.archive, names, size, private) if listed is None else write_list(listed, names, size)
    _check_shared(names)
    job = {
        "model": model.facts.model_hash,
        "pictures": images,
        "config": config.config_hash,
        "method": config.method,
        "site": site,
    }
    save_config(config, storage.join(out, "explain.json"))
    folder.write(job)
    return Job(source, None)


def remember_compiled(folder: RunFolder, compiled: bool) -> None:
    """Write into the job's record whether its networks are compiled, as a run that continues it repeats it."""
    folder.write((folder.read() or {}) | {"compiled": compiled})


def _check_shared(uri: str) -> None:
    """Refuse a local folder that is not visible on all nodes of the cluster.

    Raises:
        StorageError: if there is one.
    """
    if len(living_nodes()) < 2 or not storage.is_local(uri):
        return
    seen = on_each_node(storage.exists, uri)
    if not all(seen):
        raise StorageError(
            f"{seen.count(False)} of {len(seen)} nodes do not see {uri}; --out must be a folder that all nodes share, or a URI such as s3://"
        )
