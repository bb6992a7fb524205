"""Logging of a run: history.jsonl, TensorBoard, and MLflow on request."""

import json
from typing import Any

from pneumo_ray import storage
from pneumo_ray.config import as_flat
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.records import EpochRecord


class Trackers:
    """Logs of rank 0. After an interruption they continue without a gap or a repeated epoch."""

    def __init__(self, run: str, config: TrainConfig, history: list[EpochRecord]) -> None:
        """Open the logs of a run that has finished the epochs in `history`."""
        self._run = run
        self._history = list(history)
        write_history(run, history)
        self._tensorboard: Any = None
        if storage.is_local(run):
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(storage.join(run, "tensorboard"), purge_step=len(history))
        self._mlflow: Any = None
        if config.mlflow:
            import mlflow

            # The run id is stored beside the state, so that a continued run stays one MLflow run.
            marker = storage.join(run, "mlflow_run_id")
            known = storage.read_bytes(marker).decode() if storage.exists(marker) else None
            started = mlflow.start_run(run_id=known, run_name=storage.base_name(run))
            if known is None:
                storage.write_bytes(marker, started.info.run_id.encode())
                mlflow.log_params(as_flat(config))
            self._mlflow = mlflow
        if history:  # a run that died between saving an epoch and logging it
            self._send(history[-1])

    def log(self, record: EpochRecord) -> None:
        """Add one epoch."""
        self._history.append(record)
        write_history(self._run, self._history)
        self._send(record)

    def _send(self, record: EpochRecord) -> None:
        numbers = {name: value for name, value in record.values().items() if isinstance(value, float)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, record.epoch)
            self._tensorboard.flush()
        if self._mlflow is not None:
            self._mlflow.log_metrics(numbers, step=record.epoch)

    def close(self) -> None:
        """Close the logs of a run that has ended."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._mlflow is not None:
            self._mlflow.end_run()


def write_history(run: str, history: list[EpochRecord]) -> None:
    """Rewrite history.jsonl: one object per epoch, each exactly once, also after interruptions."""
    lines = "".join(json.dumps(record.values()) + "\n" for record in history)
    storage.write_bytes(storage.join(run, "history.jsonl"), lines.encode())
