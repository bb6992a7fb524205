import pytest

from pneumo_ray.cpu_shares import share_elastic_training, share_scoring, share_training, share_trials
from pneumo_ray.errors import ClusterError


@pytest.mark.parametrize(
    ("nodes", "workers"),
    [([2], 1), ([2], 2), ([1, 1, 1], 3), ([8], 4), ([4, 4], 7), ([4, 4], 8)],
)
def test_training_leaves_one_whole_cpu_for_tasks(nodes, workers):
    shares = share_training([{"CPU": float(cpus)} for cpus in nodes], workers)
    assert sum(nodes) - shares.per_worker * workers >= 1 - 1e-9
    left, free = workers, []
    for cpus in nodes:
        here = min(left, int(cpus / shares.per_worker + 1e-9))
        left -= here
        free.append(cpus - here * shares.per_worker)
    assert left == 0
    assert 0 < shares.per_task <= max(free)


@pytest.mark.parametrize("nodes", [[1, 2, 2], [2, 2], [8, 8, 16], [8, 14], [1, 8], [0, 4, 4], [3], [2]])
def test_elastic_workers_leave_room_on_every_node(nodes):
    """Ray Train counts places by what the nodes have in all, so what is left is what no worker fits into."""
    shares = share_elastic_training([{"CPU": float(cpus)} for cpus in nodes], use_gpu=False)
    left = [cpus - int(cpus / shares.per_worker) * shares.per_worker for cpus in nodes if cpus >= shares.per_worker]
    assert len(left) >= 1
    assert 0.5 <= 2 * shares.per_task <= shares.set_aside <= min(left), "it must not matter where it is set aside"
    gpus = share_elastic_training([{"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}], use_gpu=True)
    assert 8 - gpus.per_worker >= 2 * gpus.per_task
    assert gpus.set_aside == 0
    with pytest.raises(ClusterError, match="leave none"):
        share_elastic_training([{"CPU": 4.0}], 2, use_gpu=False)


@pytest.mark.parametrize(
    ("nodes", "workers", "at_once"),
    [([2], 1, 2), ([2], 1, 1), ([2], 1, 4), ([8], 2, 3), ([2, 2, 2, 2], 1, 8), ([16], 4, 2), ([1], 1, 1)],
)
def test_trials_reserve_what_they_need_and_no_more(nodes, workers, at_once):
    resources = [{"CPU": float(cpus)} for cpus in nodes]
    share = share_trials(resources, workers, 100, max_concurrent=at_once)
    assert share.trials == at_once
    reserved = sum(bundle["CPU"] for bundle in share.bundles)
    beside = 0.0 if share.in_process else workers * share.cpus.per_worker
    assert at_once * (reserved + beside) <= sum(nodes) + 1e-9
    # A task that prepares images finds a bundle, and every bundle a node.
    assert all(share.cpus.per_task <= bundle["CPU"] <= max(nodes) for bundle in share.bundles[1:])
    assert len(share.bundles) > 1
    assert at_once * workers * share.threads <= max(sum(nodes), at_once * workers)


def test_processors_and_memory_bound_the_trials_at_once():
    assert share_trials([{"CPU": 8.0}], 2, 100).trials == 4
    assert share_trials([{"CPU": 8.0}], 1, 3).trials == 3
    assert share_trials([{"CPU": 64.0, "memory": 9 * 2.0**30}], 1, 100).trials == 4
    share = share_trials([{"CPU": 16.0, "GPU": 2.0}], 1, 100, gpus_per_worker=0.5)
    assert (share.trials, share.bundles[0]["GPU"]) == (4, 0.5)
    with pytest.raises(ClusterError, match="0 GPUs where a trial needs 1"):
        share_trials([{"CPU": 2.0}], 1, 1, gpus_per_worker=1.0)
    with pytest.raises(ClusterError, match="do not fit on 2 CPUs"):
        share_trials([{"CPU": 2.0}], 1, 4, cpus_per_worker=2)


@pytest.mark.parametrize(("nodes", "fewest"), [([2], 0), ([2], 2), ([8], 0), ([16, 16], 0), ([1, 4], 0), ([32], 3)])
def test_scoring_leaves_one_cpu_to_decode(nodes, fewest):
    shares = share_scoring([{"CPU": float(cpus)} for cpus in nodes], fewest, use_gpu=False)
    assert shares.count * shares.num_cpus <= sum(nodes) - 1 + 1e-9
    assert shares.threads >= 1
    assert shares.num_gpus == 0


def test_scoring_takes_every_gpu():
    shares = share_scoring([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}], use_gpu=True)
    assert (shares.count, shares.num_gpus) == (4, 1)


def test_too_many_scoring_actors_are_refused():
    with pytest.raises(ClusterError, match="30 actors"):
        share_scoring([{"CPU": 2.0}], 30, use_gpu=False)
