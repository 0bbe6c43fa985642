"""Tasks in worker processes, which do not load the main program."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from bioimg_jax.memory import keep_memory

Key = TypeVar("Key", bound=Hashable)


def run_tasks(
    pool: concurrent.futures.Executor,
    function: Callable[..., Any],
    tasks: Iterable[tuple[Any, ...]],
    ahead: int,
) -> Iterator[Any]:
    """Results of `function(*task)` as they come, never more than `ahead` tasks in the pool.

    `function` must be importable by name from a module other than the main program.
    """
    tasks = iter(tasks)
    waiting: set[concurrent.futures.Future[Any]] = set()
    try:
        while True:
            while len(waiting) < ahead and (task := next(tasks, None)) is not None:
                with _empty_main_module():  # submitting may start a process
                    waiting.add(pool.submit(function, *task))
            if not waiting:
                return
            done, waiting = concurrent.futures.wait(
                waiting, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                yield future.result()
    finally:
        for future in waiting:
            future.cancel()


@dataclasses.dataclass(frozen=True)
class Task:
    """`function(*arguments)`, after the tasks that it `needs`.

    `function` must be importable by name from a module other than the main program.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    needs: Sequence[Hashable] = ()


def run_in_order(
    pool: concurrent.futures.Executor, tasks: Mapping[Key, Task], at_once: int
) -> Iterator[tuple[Key, Any]]:
    """(key, result) of every task as they come, `at_once` of them in the pool.

    Whenever there is room the first task begins whose needs are done.
    """
    todo, done = dict(tasks), set[Hashable]()
    running: dict[concurrent.futures.Future[Any], Key] = {}
    try:
        while todo or running:
            for key in [key for key, task in todo.items() if done.issuperset(task.needs)]:
                if len(running) < at_once:
                    task = todo.pop(key)
                    with _empty_main_module():  # submitting may start a process
                        running[pool.submit(task.function, *task.arguments)] = key
            if not running:
                waiting = ", ".join(map(str, todo))
                raise ValueError(f"tasks that wait for what never ends: {waiting}")
            finished, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in finished:
                key = running.pop(future)
                done.add(key)
                yield key, future.result()
    finally:
        for future in running:
            future.cancel()


def worker_pool(workers: int, *, share_cores: bool = False) -> concurrent.futures.Executor:
    """Spawned processes (a fork would copy JAX's threads and locks); for one, this very process.

    share_cores: each process keeps to cores of its own, where there are enough of them. For tasks
      that run JAX: threads of several processes on all cores wait for each other (two evaluations
      side by side on two cores took 191 s, and 101 s on a core each).
    """
    if workers <= 1:
        return _SerialExecutor()
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_begin_worker,
        initargs=(context.Value("i", 0), workers) if share_cores else (),
    )


def keep_to_cores(part: int, parts: int) -> None:
    """This process, and what it starts, on one of so many equal parts of the cores it may use.

    Does nothing where there are fewer cores than parts, or no such setting (macOS).
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= parts:
            os.sched_setaffinity(0, cores[part % parts :: parts])


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _SerialExecutor(concurrent.futures.Executor):
    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _begin_worker(begun: Any = None, workers: int = 1) -> None:
    """Leaves Ctrl-C to the parent, and ends with the parent even if that was killed.

    begun: where they share the cores, how many of the workers have begun before, in shared memory.
    """
    if begun is not None:
        with begun.get_lock():
            part, begun.value = begun.value, begun.value + 1
        keep_to_cores(part, workers)
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def _empty_main_module() -> Iterator[None]:
    """Keeps a process started inside from importing the main program again.

    It would bring JAX into every worker, and a user's script without `if __name__ == "__main__"`
    would start all over in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
