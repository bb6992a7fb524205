"""Readings as tasks of Label Studio, and back: its raw JSON, which needs neither its server nor its SDK.

A task has `data` (where the image is), `annotations` (one per reader, its `result` a list of answered controls) and
`predictions` of a model (https://labelstud.io/guide/task_format). `CONFIG` is the labelling interface that the tasks fit.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from pneumo_ray.errors import ManifestError
from pneumo_ray.readers.readings import SCHEMA
from pneumo_ray.records import JsonObject, Row

CHOICES = {0: "normal", 1: "pneumonia", None: "cannot say"}
STARS = 3
"""Steps of confidence: 1 of 3 stars is a confidence of 1 / 3."""

CONFIG = f"""<View>
  <Image name="image" value="$image" zoom="true" brightnessControl="true" contrastControl="true"/>
  <Choices name="label" toName="image" choice="single" required="true">
    <Choice value="{CHOICES[1]}" hotkey="1"/>
    <Choice value="{CHOICES[0]}" hotkey="2"/>
    <Choice value="{CHOICES[None]}" hotkey="3"/>
  </Choices>
  <Rating name="confidence" toName="image" maxRating="{STARS}"/>
</View>
"""
"""What a project of Label Studio takes as its labelling interface."""


def task(
    image_id: str, image: str, readings: Sequence[Row] = (), prob: float | None = None, model: str = ""
) -> JsonObject:
    """Return a task.

    Args:
        image_id: name by which the answers come back.
        image: address that Label Studio opens.
        readings: rows of `readings.SCHEMA`, to become annotations. Label Studio knows a reader by an e-mail address.
        prob: the model's probability of pneumonia; None for no prediction.
        model: its name or hash.
    """
    made: JsonObject = {"data": {"image": image, "image_id": image_id}}
    if readings:
        made["annotations"] = [_annotation(row) for row in readings]
    if prob is not None:
        label = int(prob >= 0.5)
        made["predictions"] = [{"model_version": model, "score": prob, "result": [_choice(label)]}]
    return made


def readings_of(tasks: Sequence[object], file: str, names: Mapping[str, str] | None = None) -> list[Row]:
    """Return the answers of an export, rows of `readings.SCHEMA`; annotations that were skipped are left out.

    An answer counts as blinded if the task has no prediction.

    Args:
        tasks: of the file.
        file: its name, for messages.
        names: the image of each hashed name; None where the tasks hold plain names.

    Raises:
        ManifestError: if the file holds something else.
    """
    rows = []
    for number, found in enumerate(tasks, 1):
        if not isinstance(found, dict) or not isinstance(found.get("data"), dict):
            raise ManifestError(
                f"{file} holds no task of Label Studio at place {number}; export it as JSON, not JSON-MIN"
            )
        name = found["data"].get("image_id")
        if not isinstance(name, str):
            raise ManifestError(
                f"{file}: task {number} has no image_id in its data; give tasks that jobs/readers.py wrote"
            )
        annotations = found.get("annotations", [])
        if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
            raise ManifestError(f"{file}: task {number} has annotations that are none; export it as JSON")
        for annotation in annotations:
            if not annotation.get("was_cancelled"):
                rows.append(_row(annotation, found, (names or {}).get(name, name), f"{file}: task {number}"))
    return rows


def _annotation(row: Row) -> JsonObject:
    result = [_choice(row["label"])]
    if row["confidence"] is not None:
        stars = max(1, round(row["confidence"] * STARS))
        result.append(_control("confidence", "rating", stars))
    made: JsonObject = {"completed_by": {"email": row["reader"]}, "result": result}
    if row["seconds"] is not None:
        made["lead_time"] = row["seconds"]
    if row["at"] is not None:
        made["created_at"] = row["at"].isoformat()
    return made


def _choice(label: int | None) -> JsonObject:
    return _control("label", "choices", [CHOICES[label]])


def _control(name: str, kind: str, value: object) -> JsonObject:
    return {"from_name": name, "to_name": "image", "type": kind, "value": {kind: value}}


def _row(annotation: JsonObject, found: JsonObject, image_id: str, where: str) -> Row:
    values = _values(annotation.get("result"), where)
    choices = values.get("choices")
    words = {word: label for label, word in CHOICES.items()}
    if not isinstance(choices, list) or len(choices) != 1 or choices[0] not in words:
        raise ManifestError(f"{where} has an answer that is none of {', '.join(words)}")
    stars = values.get("rating")
    if stars is not None and not (isinstance(stars, int | float) and 0 < stars <= STARS):
        raise ManifestError(f"{where} has a confidence that is not 1 to {STARS} stars")
    seconds = annotation.get("lead_time")
    row: Row = {
        "image_id": image_id,
        "reader": _reader(annotation.get("completed_by"), where),
        "label": words[choices[0]],
        "confidence": None if stars is None else stars / STARS,
        "seconds": float(seconds) if isinstance(seconds, int | float) and seconds >= 0 else None,
        "blinded": not found.get("predictions"),
        "at": _time(annotation.get("created_at"), where),
    }
    assert list(row) == SCHEMA.names
    return row


def _values(result: object, where: str) -> dict[str, object]:
    """Return the values of the answered controls by their kind."""
    values: dict[str, object] = {}
    for control in result if isinstance(result, list) else []:
        value = control.get("value") if isinstance(control, dict) else None
        if not isinstance(value, dict):
            raise ManifestError(f"{where} has a result that is none; export it as JSON")
        values |= value
    return values


def _reader(completed_by: object, where: str) -> str:
    """Return the name of an annotator, whom Label Studio gives as a number or as a record."""
    if isinstance(completed_by, dict):
        completed_by = next((completed_by[key] for key in ("email", "username", "id") if completed_by.get(key)), None)
    if not isinstance(completed_by, str | int):
        raise ManifestError(f"{where} has an annotation that does not say who made it (completed_by)")
    return str(completed_by)


def _time(value: object, where: str) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        raise ManifestError(f"{where} has an annotation whose created_at is no time") from None
