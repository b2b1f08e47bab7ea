"""Brings a manager along with a gunicorn that is started by its own command line.

    gunicorn -c python:state_manager.gunicorn web:app
    from state_manager.gunicorn import *        # in a gunicorn.conf.py, which gunicorn ignores when it is given -c

The idea: importing this module makes gunicorn's master look for the manager of the state directory, and start a
detached one if there is none, whenever it sets itself up: at the start, at each reload (HUP), and as the new master
after USR2. That is before it imports an app for `preload_app` and before it forks; `--check-config` and
`--print-config` do not come so far. The manager goes on when gunicorn ends.

Why a method of gunicorn's is wrapped: every hook is a setting, which a line of the user's own file would replace, and
`on_starting` comes only after a preloaded app. This module has no settings, so there is nothing to replace.

The workers find the directory in their environment, absolute. They start the manager again if it dies. When they are
stopped they wait for nothing any more (``stopping``).
"""

from __future__ import annotations

from typing import Any

from gunicorn.arbiter import Arbiter

from . import sidecar, stopping, users
from .api import start_managers
from .errors import StateError
from .settings import ADDRESS_VARIABLE, DIRECTORY_VARIABLE, START_VARIABLE, DirectoryAddress, resolve_address, variable

__all__: list[str] = []

_set_up = Arbiter.setup
_announcement: list[str] = []
"""What gunicorn's log will say, once there is one."""


def _set_up_with_manager(arbiter: Any, app: Any) -> None:
    if not getattr(app, "supervised", False):  # there somebody else takes care of the manager
        try:
            _bring_manager(app.cfg)
        except (StateError, ValueError) as error:
            if arbiter.log is None:
                raise RuntimeError(error) from error  # gunicorn shows it and ends
            arbiter.log.error("%s", error)  # a reload goes on: the workers may still reach the manager
    _set_up(arbiter, app)
    if _announcement:
        arbiter.log.info("%s", _announcement.pop())


def _bring_manager(cfg: Any) -> None:
    """Find or start the manager, and tell the workers where. Raises StateError, or ValueError for a strange address."""
    own = cfg.env  # what gunicorn's settings add to the environment
    given = own.get(ADDRESS_VARIABLE) or variable(ADDRESS_VARIABLE)
    address = resolve_address(given or own.get(DIRECTORY_VARIABLE))
    if not isinstance(address, DirectoryAddress):
        return
    directory = address.path
    exported = [f"{ADDRESS_VARIABLE if given else DIRECTORY_VARIABLE}={directory}"]
    if not (own.get(START_VARIABLE) or variable(START_VARIABLE)):
        exported.append(f"{START_VARIABLE}=1")
        start_managers()  # a plain `connect()` knows no settings
    cfg.set("raw_env", [*cfg.settings["raw_env"].get(), *exported])
    users.make_directory_for(cfg.uid, cfg.gid, directory)
    pid = users.run_as(cfg.uid, cfg.gid, lambda: sidecar.ensure(directory))
    _announcement[:] = [f"State manager: pid {pid}, directory {directory}; it goes on when gunicorn ends"]


Arbiter.setup = _set_up_with_manager
stopping.install()
