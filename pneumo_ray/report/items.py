"""The items of TRIPOD+AI (Collins et al. 2024, BMJ 385:e078378) and CLAIM 2024 (Tejani et al.), filled with what is known.

Information that the software does not have is `NOT_AVAILABLE`, for the authors of a study to fill in.
"""

import pyarrow.compute as pc

from pneumo_ray.report.subject import Subject
from pneumo_ray.report.wording import passes_text

NOT_AVAILABLE = "not available"

_UNITS = {
    "grouped": "patient: images of one patient, and exact copies of an image, stay on one side",
    "official": "the archive's own folders; validation is carved out of the training folder by patient",
    "paper": "image: the same patient can be on both sides",
}


def reporting_items(subject: Subject) -> list[tuple[str, str]]:
    """Return (item, what is known) in the order of a paper."""
    numbers, protocol = subject.numbers, subject.provenance("manifest", "protocol")
    return [
        ("Intended use", "research use only; no clinical use is defined"),
        ("Intended population and setting", NOT_AVAILABLE),
        ("Data sources", f"{len(subject.manifest):,} images of the manifest {subject.manifest_name}; their origin: {NOT_AVAILABLE}"),
        ("Dates and places of collection", NOT_AVAILABLE),
        ("Eligibility criteria", NOT_AVAILABLE),
        ("Flow of exclusions", _flow(subject)),
        ("Reference standard", f"the labels of the manifest, unchanged; who made them and how: {NOT_AVAILABLE}"),
        ("Demographics (age, sex, ethnicity)", NOT_AVAILABLE),
        ("Unit of partition", _UNITS.get(str(protocol), NOT_AVAILABLE)),
        ("Sample sizes", _sizes(subject)),
        ("Sample size rationale", NOT_AVAILABLE),
        ("Missing and failed data", f"{len(subject.failed):,} file(s) of the archive failed and stay as rows with stage and reason; nothing is imputed"),
        ("Preprocessing", _preprocessing(subject)),
        ("Model", _model(subject)),
        ("Training", _training(subject)),
        ("Initial weights", _weights(subject)),
        ("Threshold and its rationale", _threshold(subject)),
        ("Calibration method", _calibration(subject)),
        ("Discrimination and calibration with intervals", "sections Discrimination and Calibration" if numbers.measured else NOT_AVAILABLE),
        ("Subgroups and fairness", "section Subgroups" if numbers.measured and numbers.measured.subgroups else NOT_AVAILABLE),
        ("Robustness", "section Shortcuts and robustness" if subject.robustness else NOT_AVAILABLE),
        ("Failure analysis", "sections Residuals, Images and Failures" if numbers.measured else NOT_AVAILABLE),
        ("Explanations and their validation", f"BayesGrad-CAM{' with fused maps' if subject.fact('config', 'maps') == 'fused' else ''}, {passes_text(subject.fact('config', 'passes'))}; agreement with regions that a radiologist marked: {NOT_AVAILABLE}"),
        ("External validation", NOT_AVAILABLE),
        ("Comparison with human readers", NOT_AVAILABLE),
        ("Limitations", "see the warnings in the summary; a retrospective measurement on one archive, labels of unknown quality"),
        ("Ethics approval, consent, registration, protocol, funding", NOT_AVAILABLE),
        ("Code availability", "pneumo_ray " + str(subject.fact("versions", "pneumo_ray") or NOT_AVAILABLE)),
        ("Model identity", f"sha256 {subject.fact('model', 'hash') or NOT_AVAILABLE}"),
        ("Data availability", NOT_AVAILABLE),
    ]  # fmt: skip


def _flow(subject: Subject) -> str:
    table, split = subject.manifest, subject.numbers.split
    unreadable = pc.sum(pc.equal(table["status"], "failed")).as_py() or 0
    ok = table.filter(pc.equal(table["status"], "ok"))
    unused = pc.sum(pc.and_(pc.is_null(ok["split"]), pc.is_valid(ok["label"]))).as_py() or 0
    return (
        f"{len(table):,} images in the manifest; {unreadable:,} unreadable, {ok['label'].null_count:,} without a label, {unused:,} labelled "
        f"but in no split; {subject.numbers.labelled:,} of {'all splits' if split is None else f'the split {split}'} measured here"
    )


def _sizes(subject: Subject) -> str:
    counts = subject.manifest.filter(pc.is_valid(subject.manifest["split"])).group_by(["split", "label"]).aggregate([([], "count_all")])  # fmt: skip
    found = {(row["split"], row["label"]): row["count_all"] for row in counts.to_pylist()}
    sizes = "; ".join(
        f"{split}: {found.get((split, 0), 0):,} normal, {found.get((split, 1), 0):,} pneumonia"
        for split in ("train", "val", "test")
        if (split, 0) in found or (split, 1) in found
    )
    return sizes or NOT_AVAILABLE


def _preprocessing(subject: Subject) -> str:
    names = ("resize_size", "image_size", "mean", "std")
    resize, size, mean, std = (subject.fact("model", "preprocessing", name) for name in names)
    if resize is None or size is None:
        return NOT_AVAILABLE
    fit = subject.fact("model", "preprocessing", "fit")
    framing = {
        "pad": f"padded with black to a square in its true shape, resized to {size} x {size}",
        "lungs": f"cropped to a square around the lungs that a segmenter finds (the whole image, padded, where they are not plausible), "
        f"resized to {size} x {size}",
        "lungs-squash": f"cropped to the lungs that a segmenter finds (the whole image where they are not plausible), "
        f"resized to {size} x {size} (aspect ratio not kept)",
    }.get(str(fit), f"resized to {resize} x {resize} (aspect ratio not kept), centre crop of {size} x {size}")
    return f"decoded to 8-bit grey, {framing}, three equal channels, mean {mean}, std {std}"


def _model(subject: Subject) -> str:
    names = ("arch", "dropout", "dropout_site")
    arch, dropout, site = (subject.provenance("config", "model", name) for name in names)
    if arch is None:
        return str(subject.fact("model", "architecture") or NOT_AVAILABLE)
    return f"{arch}, one logit; dropout {dropout} at the {site}"


def _training(subject: Subject) -> str:
    paths = (("config", "optim", "lr"), ("config", "optim", "weight_decay"), ("config", "batch_size"), ("config", "balance"),
             ("config", "seed"), ("best_epoch",), ("epochs",))  # fmt: skip
    facts = [subject.provenance(*path) for path in paths]
    if None in facts:
        return NOT_AVAILABLE
    rate, decay, batch, balance, seed, best, epochs = facts
    return (
        f"AdamW, peak learning rate {rate}, weight decay {decay}, batch {batch}, balance {balance}, seed {seed}; epoch {best} of "
        f"{epochs} chosen by validation loss; all options below the learning curves"
    )


def _weights(subject: Subject) -> str:
    weights = subject.provenance("config", "model", "weights")
    known = {"none": "random", "imagenet": "ImageNet, torchvision"}
    return NOT_AVAILABLE if weights is None else known.get(str(weights), f"from the file {weights}")


def _threshold(subject: Subject) -> str:
    rule = subject.fact("operating_point", "rule")
    if rule is None:
        return f"{subject.numbers.threshold:.4f} on the calibrated probability; how it was chosen: {NOT_AVAILABLE}"
    return f"{subject.numbers.threshold:.4f} on the calibrated probability; rule: {rule}, on validation"


def _calibration(subject: Subject) -> str:
    numbers = subject.numbers
    text = f"logistic, temperature {numbers.temperature:.3f} and intercept {numbers.intercept:+.3f}"
    return (
        f"{text}, fitted on validation"
        if subject.provenance("validation") is not None
        else f"{text}; fitted on: {NOT_AVAILABLE}"
    )
