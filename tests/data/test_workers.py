"""Tasks that need others: each after what it needs, no more at a time than there is room for."""

import concurrent.futures
import os
import threading
import time

import pytest

from bioimg_jax.data.workers import Task, keep_to_cores, run_in_order, worker_pool


def square(x: int) -> int:
    return x * x


def test_a_task_begins_after_what_it_needs() -> None:
    lock, running, most, order = threading.Lock(), 0, 0, []

    def work(name: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            order.append(name)
        time.sleep(0.02)
        with lock:
            running -= 1
        return name.upper()

    needs = {"d": ("b",), "a": (), "b": ("a",), "c": (), "e": (), "f": ("d", "e")}
    tasks = {name: Task(work, (name,), wanted) for name, wanted in needs.items()}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(run_in_order(pool, tasks, 2))
    assert dict(found) == {name: name.upper() for name in needs}
    assert most == 2
    came = [name for name, _ in found]
    for name, wanted in needs.items():
        assert all(came.index(one) < came.index(name) for one in wanted)
    assert order[:2] == ["a", "c"]  # the first that can begin


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_and_this_process_do_the_same(workers: int) -> None:
    tasks = {x: Task(square, (x,)) for x in range(5)}
    with worker_pool(workers) as pool:
        assert dict(run_in_order(pool, tasks, workers)) == {x: x * x for x in range(5)}


def cores(seconds: float) -> tuple[int, ...]:
    time.sleep(seconds)  # long enough for the other process to take the next task
    return tuple(sorted(os.sched_getaffinity(0)))


def test_processes_share_the_cores() -> None:
    """Half of them each, and none twice; all of them where there is a single one."""
    ours = tuple(sorted(os.sched_getaffinity(0)))
    tasks = {x: Task(cores, (0.5,)) for x in range(6)}
    with worker_pool(2, share_cores=True) as pool:
        found = set(dict(run_in_order(pool, tasks, 2)).values())
    assert found == ({ours[::2], ours[1::2]} if len(ours) > 1 else {ours})
    with worker_pool(2) as pool:
        assert set(dict(run_in_order(pool, tasks, 2)).values()) == {ours}


def test_parts_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3, 0, 1, 2})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: kept.append(cores))
    for part in range(3):
        keep_to_cores(part, 2)
    keep_to_cores(0, 6)
    assert kept == [[0, 2, 7], [1, 3], [0, 2, 7]]


def test_tasks_that_cannot_begin_are_named() -> None:
    tasks = {"a": Task(square, (1,), ("b",)), "b": Task(square, (1,), ("a",))}
    with worker_pool(1) as pool, pytest.raises(ValueError, match="never ends: a, b"):
        list(run_in_order(pool, tasks, 2))


def fail(message: str) -> None:
    raise OSError(message)


def test_a_task_that_fails_ends_the_rest() -> None:
    begun = []
    tasks = {"a": Task(fail, ("no room",)), "b": Task(begun.append, (1,), ("a",))}
    with worker_pool(1) as pool, pytest.raises(OSError, match="no room"):
        list(run_in_order(pool, tasks, 1))
    assert not begun
