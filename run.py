"""The main job: one state manager and one gunicorn, serving the app in web/. `python run.py --help` tells the rest."""

# Any Python must be able to read this file, so that it can say what is missing.
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
INSTALL = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python run.py"

if sys.version_info < (3, 11):  # noqa: UP036  # ruff knows no older one; whoever starts this may have one
    message = "run.py needs Python 3.11 or later, and this is %s. With one: %s"
    sys.exit(message % (sys.version.split()[0], INSTALL.replace("python3", "python3.11", 1)))
try:
    import flask  # noqa: F401
    import gunicorn  # noqa: F401
    import msgpack  # noqa: F401

    from state_manager.supervisor import main
except ImportError as error:
    sys.exit("run.py: %s. To install what it needs: %s" % (error, INSTALL))  # noqa: UP031

if __name__ == "__main__":
    # The manager, gunicorn and its workers run this checkout's code, whatever is installed and wherever this is called.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
    sys.exit(main(default_app="web:app", path=HERE))
