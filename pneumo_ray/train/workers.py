"""The workers of a training over a stream of tickets: what they reserve, and how Ray Train runs them."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from pneumo_ray.cpu_shares import Node, TrainShares, share_elastic_training, share_training
from pneumo_ray.ray_cluster import compute_environment, wait_for
from pneumo_ray.train.batches import TicketSource
from pneumo_ray.train.config import ScalingConfig
from pneumo_ray.train.loop import STREAM
from pneumo_ray.train.monitor import Monitor, Record, RemoteMonitor, followed
from pneumo_ray.train.ray_stream import StreamConfig
from pneumo_ray.train.state import latest_epoch

Job = TypeVar("Job")


@dataclass(frozen=True)
class Reservation(Generic[Record]):
    """Reserved resources of a run that is one of several."""

    shares: TrainShares
    monitor: Monitor[Record]
    """Receives progress instead of the terminal."""
    reserved: PlacementGroup | None
    """Placement group of the tasks that prepare images."""
    in_process: bool
    """Train in the calling process, which is then the only worker."""
    on_epoch: Callable[[Record], None]
    """Called with the record of every finished epoch."""


def run_workers(
    worker: Callable[[dict[str, Job]], None],
    job: Job,
    source: TicketSource,
    epochs: int,
    scaling: ScalingConfig,
    run: str,
    reservation: Reservation[Record],
) -> None:
    """Run workers over a stream of tickets, from where the run stands to its last epoch, and print what they report.

    Args:
        worker: takes {"job": job} in each worker; an error that no restart can fix goes to `reservation.monitor`.
        job: arguments shared by all workers.
        source: makes the tickets.
        epochs: of the run.
        scaling: how many workers, and on what.
        run: folder of the run, where its state is.
        reservation: the resources that the run uses, and what receives its progress.

    Raises:
        PneumoError: that a worker reported to the monitor.
    """
    gpus = {"GPU": scaling.gpus_per_worker} if scaling.use_gpu else {}
    own = _reserve_cpus(reservation.shares.set_aside) if reservation.shares.set_aside else None
    reserved = own or reservation.reserved
    stream = StreamConfig(ray.put(source), epochs, lambda: latest_epoch(run), reservation.shares.per_task, reserved)
    workers = (scaling.min_workers, scaling.max_workers) if scaling.is_elastic else scaling.max_workers
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if reservation.in_process else workers,  # 0 makes Ray Train use this process
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": reservation.shares.per_worker} | gpus,
        ),
        # A placeholder: the stream depends on the epoch where the run continues, so `StreamConfig` makes it at that time.
        # Ray Train hands it unchanged to a worker in this process.
        datasets={STREAM: stream.shares(1)[0] if reservation.in_process else ray.data.range(1)},
        dataset_config=stream,
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=run,
            worker_runtime_env={"env_vars": compute_environment(scaling.allocator, use_gpu=scaling.use_gpu)},
            # Workers count restarts without progress themselves; Ray Train would count over the whole run.
            failure_config=ray.train.FailureConfig(max_failures=-1 if scaling.max_failures else 0),
        ),
    )
    following: AbstractContextManager[Sequence[Exception]] = nullcontext(())
    if not reservation.in_process:
        following = followed(reservation.monitor, epochs, reservation.on_epoch)
    with following as lost:
        try:
            trainer.fit() if reservation.in_process else _beside_main_thread(trainer.fit, lost)
        except Exception:
            if lost or reservation.monitor.failure() is None:
                raise
        finally:
            if own is not None:
                remove_placement_group(own)
    if (reason := reservation.monitor.failure()) is not None:
        raise reason


def whole_cluster(scaling: ScalingConfig, on_epoch: Callable[[Record], None]) -> Reservation[Record]:
    """Wait until the cluster has room for the run, and share all of it.

    Raises:
        ClusterError: if there is none after `scaling.wait_seconds`.
    """
    workers = (scaling.min_workers, scaling.max_workers)
    nodes = _wait_for_training(workers, scaling.cpus_per_worker, scaling.wait_seconds, use_gpu=scaling.use_gpu)
    if scaling.is_elastic:
        shares = share_elastic_training(nodes, scaling.cpus_per_worker, use_gpu=scaling.use_gpu)
    else:
        shares = share_training(nodes, scaling.max_workers, scaling.cpus_per_worker)
    return Reservation(shares, RemoteMonitor(), None, in_process=False, on_epoch=on_epoch)


def _wait_for_training(
    workers: tuple[int, int], cpus_per_worker: float, seconds: float, *, use_gpu: bool
) -> Sequence[Node]:
    """Wait until the cluster has room for a training; return the resources of its nodes.

    Args:
        workers: the fewest and the most.
        cpus_per_worker: logical CPUs of each; 0 lets the job choose.
        seconds: how long to wait.
        use_gpu: each has a GPU.

    Raises:
        ClusterError: if there is none after that long.
    """
    fewest, most = workers
    # Without a reservation, more workers than CPUs would start, share them, and be slower than fewer.
    least = 0.05 * fewest if use_gpu else max(fewest - 1.0, 1.0)
    needed = {"CPU": 1.0 + (cpus_per_worker * fewest or least)} | ({"GPU": float(fewest)} if use_gpu else {})
    worker = {"CPU": cpus_per_worker or 1.0} | ({"GPU": 1.0} if use_gpu else {})
    advice = (
        "one CPU prepares images; ask for fewer --scaling.num-workers, or raise --scaling.wait-seconds where nodes are "
        "still coming"
    )
    return wait_for(needed, [*[worker] * most, {"CPU": 1.0}], seconds, advice)


def _reserve_cpus(cpus: float) -> PlacementGroup:
    """Keep CPUs from all others; the caller removes the group where its process lives on."""
    group = placement_group([{"CPU": cpus}])
    ray.get(group.ready())
    return group


def _beside_main_thread(action: Callable[[], object], lost: Sequence[Exception]) -> None:
    """Run an action in its own thread: in the main thread Ray Train handles Ctrl-C itself and ends without a message.

    It is left as soon as `lost` has an error, which is raised.
    """
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:  # raised again in the waiting thread
            raised.append(error)

    thread = threading.Thread(target=act, name="trainer", daemon=True)
    thread.start()
    while thread.is_alive() and not lost:
        thread.join(timeout=1)
    for error in (*lost, *raised):
        raise error
