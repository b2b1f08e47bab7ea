"""The checks of an app that was imported here: its variables, its extensions. Real ones, in a project of their own."""

from __future__ import annotations

import importlib
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from flask import Flask
from limits.storage import Storage

from state_manager.doctor import libraries, probe, variables
from state_manager.doctor.findings import Finding
from state_manager.doctor.project import Project

Make = Callable[..., tuple[Flask, Project]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """``make(shop="...", data="...")`` writes these modules and returns the app of the first, and its project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)

    def make(**modules: str) -> tuple[Flask, Project]:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        first = next(iter(modules))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the extensions' own
            module = importlib.import_module(first)
        return module.app, Project(first)

    yield make
    for name in set(sys.modules) - known:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def told(findings: Iterator[Finding]) -> list[tuple[str, str, int | None]]:
    """Return severity, the first word of the message and the line of each finding."""
    return [(finding.severity, finding.message.split()[0], finding.line) for finding in findings]


# Variables

COUNTING = """
import itertools
from collections import Counter, defaultdict, deque
from flask import Flask, request
app = Flask(__name__)
visits = 0
numbers = itertools.count()
carts = defaultdict(list)
words = Counter()
last = deque(maxlen=5)
is_open = True
untouched = {}
_rates = {}
connections = []

def helper(name):
    carts[name].append(1)

@app.get("/<name>")
def view(name):
    global visits
    visits += 1
    next(numbers)
    helper(name)
    if name not in _rates:
        _rates[name] = len(name)
    return untouched.get(name, "")

@app.before_request
def hook():
    words["a"] += 1
    connections.append(1)

@app.errorhandler(404)
def missing(error):
    last.append(error)
    return "", 404

@app.post("/open")
def switch():
    global is_open
    is_open = request.form["open"] == "yes"
    return ""

@app.cli.command()
def fill():
    untouched["a"] = 1
"""


def test_what_requests_change_is_found_where_it_is_made(make: Make) -> None:
    found = list(variables.look(*make(counting=COUNTING)))
    assert told(iter(found)) == [
        ("problem", "visits", 6),
        ("problem", "numbers", 7),
        ("problem", "carts", 8),
        ("problem", "words", 9),
        ("problem", "last", 10),
        ("problem", "is_open", 11),
        ("advice", "_rates", 13),
        ("advice", "connections", 14),
    ]
    assert "changed by view (line 22)" in found[0].message
    assert '`visits = state.counter("visits")`' in str(found[0].fix)
    assert "changed by helper (line 17)" in found[2].message


def test_a_variable_of_another_module_and_functions_behind_decorators_and_classes(make: Make) -> None:
    app, project = make(
        front="""
            import functools
            from flask import Flask
            from flask.views import MethodView
            import service
            from data import users, titles
            app = Flask(__name__)

            def logged(function):
                def inner(*args, **kwargs):  # without functools.wraps
                    return function(*args, **kwargs)
                inner.__name__ = function.__name__
                return inner

            def also_logged(function):
                return functools.wraps(function)(lambda *args: function(*args))

            @app.get("/a/<name>")
            @logged
            def a(name):
                users[name] = 1
                return ""

            @app.get("/b")
            @also_logged
            def b():
                return service.count()

            @app.get("/d")
            @logged
            def d():
                lasts["d"] = 1
                return ""

            lasts = {}

            class Titles(MethodView):
                def get(self):
                    titles.append(1)
                    return ""

            app.add_url_rule("/c", view_func=Titles.as_view("titles"))
        """,
        service="""
            total = 0

            def count():
                global total
                total += 1
                return str(total)

            def reset():
                other.clear()

            other = {}
        """,
        data="titles = []\nusers: dict = {}\n",
    )
    found = {finding.message.split()[0]: finding for finding in variables.look(app, project)}
    assert {name: (Path(one.file or "").name, one.line) for name, one in found.items()} == {
        "users": ("data.py", 2),
        "titles": ("data.py", 1),
        "total": ("service.py", 2),
        "lasts": ("front.py", 35),
    }
    assert "by a (line 21 of front)" in found["users"].message


def test_variables_of_a_factory_and_of_a_decorator(make: Make) -> None:
    found = variables.look(
        *make(
            factory="""
                from flask import Flask, request

                def limited(times):
                    calls = {}
                    results = {}
                    def decorator(function):
                        def inner(*args):
                            calls[request.remote_addr] = calls.get(request.remote_addr, 0) + 1
                            if args not in results:
                                results[args] = function(*args)
                            return results[args]
                        inner.__name__ = function.__name__
                        return inner
                    return decorator

                def create_app():
                    app = Flask(__name__)
                    visits = 0
                    local = {}
                    local["a"] = 1

                    @app.get("/")
                    @limited(5)
                    def view():
                        nonlocal visits
                        visits += 1
                        return local["a"]

                    return app

                app = create_app()
            """
        )
    )
    assert told(found) == [("problem", "calls", 5), ("advice", "results", 6), ("problem", "visits", 19)]


@pytest.mark.parametrize(
    ("name", "severity"),
    [
        ("url_cache", "advice"),
        ("cachedPages", "advice"),
        ("db_connections", "advice"),
        ("connected_users", "problem"),
        ("blocked", "problem"),
        ("memories", "problem"),
    ],
)
def test_names_of_what_a_worker_may_have_for_itself(make: Make, name: str, severity: str) -> None:
    text = f"from flask import Flask\napp = Flask(__name__)\n{name} = []\n"
    text += f"@app.get('/')\ndef view():\n    {name}.append(1)\n"
    assert told(variables.look(*make(naming=text))) == [(severity, name, 3)]


def test_what_only_looks_like_shared_state_is_let_alone(make: Make) -> None:
    app, project = make(
        clean="""
            import logging
            from flask import Flask, session, g
            from state_manager.flask import SharedState
            app = Flask(__name__)
            app.config["STATE_MANAGER_ADDRESS"] = "memory://"
            state = SharedState(app)
            carts = state.dict("carts")
            visits = state.counter("visits")
            clients = {"mail": {1}.union}
            LIMITS = {"a": 1}
            _client = None
            _ready = False
            seen = []

            class Client:
                def update(self, value): ...

            apis = {"one": Client()}

            def client():
                global _client, _ready
                if _client is None:
                    _client = Client()
                if not _ready:
                    logging.info("ready")
                    _ready = True
                return _client

            def at_import():
                seen.append(1)

            at_import()

            @app.get("/")
            def view():
                carts["a"] = 1
                visits.increment()
                session["n"] = session.get("n", 0) + 1
                g.items = []
                g.items.append(1)
                apis["one"].update(2)
                client().update(1)
                limits = dict(LIMITS)
                limits["b"] = 2
                LIMITS.get("a")
                total = 0

                def add():
                    nonlocal total
                    total += 1

                add()
                return ""

            total = 0
        """
    )
    assert list(variables.look(app, project)) == []


def test_what_multiprocessing_shares_only_with_what_is_forked_later(make: Make) -> None:
    text = "import multiprocessing\nfrom flask import Flask\napp = Flask(__name__)\n"
    text += "visits = multiprocessing.Value('i', 0)\nnumbers = multiprocessing.Array('i', 10)\nplain = [0] * 10\n"
    assert told(variables.look(*make(forking=text))) == [("advice", "visits", 4), ("advice", "numbers", 5)]


# Extensions


def look(made: tuple[Flask, Project]) -> list[tuple[str, str, int | None]]:
    return [(finding.severity, finding.check, finding.line) for finding in libraries.look(*made)]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('"CACHE_TYPE": "SimpleCache"', [("problem", "Flask-Caching", 5)]),
        ('"CACHE_TYPE": "NullCache", "CACHE_NO_NULL_WARNING": True', [("advice", "Flask-Caching", 5)]),
        ('"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "files"', [("ok", "Flask-Caching", None)]),
    ],
)
def test_flask_caching(make: Make, config: str, told: object) -> None:
    text = "from flask import Flask\nfrom flask_caching import Cache\n# CACHE_TYPE = 'SimpleCache'\n"
    text += f"cache = Cache(config={{\n    {config}}})\napp = Flask(__name__)\ncache.init_app(app)\n"
    assert look(make(cached=text)) == told


class Elsewhere(Storage):
    """A storage of limits that is none of its own."""

    STORAGE_SCHEME = ["elsewhere"]  # noqa: RUF012  # as the base class has it
    base_exceptions = OSError
    incr = get = get_expiry = check = reset = clear = lambda *args: 0  # type: ignore[assignment]  # never called


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", [("problem", "Flask-Limiter", 4)]),
        (', storage_uri="memory://"', [("problem", "Flask-Limiter", 4)]),
        (", enabled=False", []),
        (', storage_uri="elsewhere://"', [("ok", "Flask-Limiter", None)]),
    ],
)
def test_flask_limiter(make: Make, options: str, told: object) -> None:
    text = "from flask import Flask\nfrom flask_limiter import Limiter\napp = Flask(__name__)\n"
    assert look(make(limited=f"{text}Limiter(lambda: 'x', app=app{options})\n")) == told


def test_flask_socketio(make: Make) -> None:
    text = "from flask import Flask\nfrom flask_socketio import SocketIO\napp = Flask(__name__)\n"
    assert look(make(chat=f"{text}SocketIO(app, async_mode='threading')\n")) == [("problem", "Flask-SocketIO", 4)]
    queue = "import socketio\nqueue = socketio.PubSubManager(write_only=True)\n"
    text += f"{queue}SocketIO(app, async_mode='threading', client_manager=queue)\n"
    assert look(make(queued=text)) == [("ok", "Flask-SocketIO", None)]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('SESSION_TYPE="filesystem", SESSION_FILE_DIR="files"', [("advice", "Flask-Session", 5)]),
        ('SESSION_TYPE="cachelib", SESSION_CACHELIB=SimpleCache()', [("problem", "Flask-Session", 5)]),
    ],
)
def test_flask_session(make: Make, config: str, told: object) -> None:
    text = "from flask import Flask\nfrom flask_session import Session\nfrom cachelib import SimpleCache\n"
    text += f"app = Flask(__name__)\napp.config.update({config})\nSession(app)\n"
    assert look(make(visited=text)) == told


def test_an_app_without_extensions_has_nothing_to_tell(make: Make) -> None:
    text = "from flask import Flask\napp = Flask(__name__)\napp.config['SESSION_TYPE'] = 'filesystem'\n"  # of no effect
    assert look(make(bare=text)) == []


class Pretender:
    """As cffi has some."""

    __slots__ = ()
    __class__ = ModuleType  # type: ignore[assignment]


class Lazy(ModuleType):
    def __getattribute__(self, name: str) -> object:
        raise ImportError("it would be loaded now")


def test_modules_that_are_none_or_not_yet(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _, project = make(own="from flask import Flask\napp = Flask(__name__)\n")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pretender", Pretender())
        patched.setitem(sys.modules, "lazy", Lazy("lazy"))
        assert project.names == {"own"}


def test_a_check_that_fails_does_not_end_the_others() -> None:
    def check() -> Iterator[Finding]:
        yield Finding("ok", "a", "first")
        raise RuntimeError("strange")

    found = list(probe.guarded("a", check()))
    assert [finding.message for finding in found] == ["first", "this check has failed: RuntimeError: strange"]


def test_installed_packages_are_not_the_project(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, project = make(own="from flask import Flask\nimport state_manager\napp = Flask(__name__)\n")
    assert list(project.modules) == [str(tmp_path / "own.py")]
    assert not project.has(str(tmp_path / ".venv/lib/python3.11/site-packages/flask/app.py"))
    package = Path(variables.__file__).parents[1]
    monkeypatch.chdir(package.parent)
    project = Project("own")
    assert not project.has(variables.__file__)
    assert project.has(str(package.parent / "web" / "__init__.py"))
    assert project.has(str(tmp_path / "own.py")), "wherever the app is, it is its own"
