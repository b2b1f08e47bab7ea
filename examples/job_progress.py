"""Job progress with cancel: whoever asks sees how far a job is, in whichever process it runs, and can end it.

The calls: ``set(job, done, ttl=...)`` by the job, ``add(job, True, ttl=...)`` by whoever cancels. Two dicts, each with
one writer: if both wrote into one value, the progress would be stored over the wish to cancel. ``job in cancelled`` is
a look into the process's own memory until somebody cancels, so a job may ask as often as it likes.
"""

from collections.abc import Callable, Iterable

import state_manager

manager = state_manager.connect()
progress, cancelled = manager.dict("job-progress"), manager.dict("job-cancelled")


def run(job: str, steps: Iterable[Callable[[], object]]) -> bool:
    for done, step in enumerate(steps, 1):
        if job in cancelled:
            return False
        step()
        progress.set(job, done, ttl=86400)
    return True


def cancel(job: str) -> None:
    cancelled.add(job, True, ttl=86400)
