"""Records which members of TensorRT's API the tests use, while they run.

`tests/api/inventory.txt` lists classes and members. Once a test file of a recorded folder is
collected, every member is replaced by one that notes its use and then does what it did before:

- methods, properties, attributes and enum values count when code of a test reads, sets or calls
  them. What tactician does by itself does not count;
- methods that programs provide (of loggers, allocators, plugins …) count when a test's own is
  called, whoever calls it;
- values of enums that a test is parametrized with count for that test.

Each process notes what its tests used in a file of its own, so that runs with several workers
can be put together. `tests/api/test_inventory.py` fails for members that no test used.
"""

from __future__ import annotations

import enum
import functools
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
INVENTORY = HERE / "api" / "inventory.txt"
# What runs recorded: folders and files below tests/.
RECORDED = ("api", "builder", "network", "runtime", "caffe/test_parser.py", "onnx/test_parser.py",
            "onnx/test_refit.py", "uff")
NOT_COUNTED = ("network/test_enums.py",)  # goes through all enums by name
LAST = "test_every_member_is_used"


def read_inventory() -> dict[str, frozenset[str]]:
    """Class (or ``functions``, ``constants``) to members; below ``tensorrt.plugin`` as
    ``plugin.Name``."""
    out = {}
    for line in INVENTORY.read_text().splitlines():
        head, _, rest = line.partition(":")
        kind, _, name = head.rpartition(" ")
        out[f"plugin.{name}" if kind == "plugin" else name] = frozenset(rest.split())
    return out


def is_recorded(path: Path) -> bool:
    """Whether a test file's use of the API counts."""
    try:
        inside = path.resolve().relative_to(HERE).as_posix()
    except ValueError:
        return False
    return inside not in NOT_COUNTED and any(
        inside == r or inside.startswith(r + "/") for r in RECORDED)


class Usage:
    """What is used, by test."""

    def __init__(self) -> None:
        self.inventory = read_inventory()
        self.names: dict[type, list[tuple[str, frozenset[str]]]] = {}
        self.installed = False
        self.used: set[str] | None = None  # by the test that runs now
        self._is_test: dict[str, bool] = {}
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
        base = Path(tempfile.gettempdir())
        self.folder = base / f"tactician-api-{run}" if run else Path(tempfile.mkdtemp())
        self.worker = os.environ.get("PYTEST_XDIST_WORKER", "main")

    # --- noting ---------------------------------------------------------------------------

    def by_test(self, depth: int = 2) -> bool:
        """Whether the code that called the caller is a test's."""
        if self.used is None:
            return False
        name = sys._getframe(depth).f_code.co_filename
        known = self._is_test.get(name)
        if known is None:
            known = self._is_test[name] = name.startswith(str(HERE)) and name != __file__
        return known

    def hit(self, cls: type, member: str) -> None:
        if self.used is None:
            return
        for c in cls.__mro__:
            for name, members in self.names.get(c, ()):
                self.used.add(name)
                if member in members:
                    self.used.add(f"{name}.{member}")

    def hit_values(self, x: Any) -> None:
        """Notes enum values anywhere in a test's parameters."""
        if isinstance(x, enum.Enum):
            self.hit(type(x), x.name)
        elif isinstance(x, dict):
            self.hit_values([*x.keys(), *x.values()])
        elif isinstance(x, (list, tuple, set, frozenset)):
            for y in x:
                self.hit_values(y)

    # --- files ----------------------------------------------------------------------------

    def write(self, nodeid: str) -> None:
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / f"{self.worker}.txt", "a") as f:
            f.write(f"{nodeid}\t{' '.join(sorted(self.used or ()))}\n")

    def read(self) -> dict[str, set[str]]:
        """Test to what it used, of all processes."""
        out: dict[str, set[str]] = {}
        for path in sorted(self.folder.glob("*.txt")):
            text = path.read_text()
            for line in text[: text.rfind("\n") + 1].splitlines():
                nodeid, _, used = line.partition("\t")
                out[nodeid] = set(used.split())
        return out

    def wait(self, nodeids: set[str], seconds: float) -> dict[str, set[str]]:
        """What was used, once other workers have run their tests, too. They began those before
        this one, so they don't wait for us."""
        end = time.monotonic() + seconds
        while True:
            found = self.read()
            missing = nodeids - found.keys()
            if not missing:
                return found
            if time.monotonic() > end:
                pytest.fail(f"{len(missing)} tests have not run, such as {min(missing)}")
            time.sleep(0.2)

    # --- instrumentation ------------------------------------------------------------------

    def install(self) -> None:
        """Replaces members by ones that note their use."""
        if self.installed:
            return
        self.installed = True
        import tactician as trt

        for name in self.inventory:
            found = resolve(trt, name)
            if isinstance(found, type):
                self.names.setdefault(found, []).append((name, self.inventory[name]))
        done: set[tuple[type, str]] = set()
        for cls, entries in self.names.items():
            for member in sorted(set().union(*(m for _, m in entries))):
                self._wrap(cls, member, done)
        self._watch_subclasses()
        self._watch_module(trt, "")
        self._watch_module(trt.plugin, "plugin.")

    def _wrap(self, cls: type, member: str, done: set[tuple[type, str]]) -> None:
        if issubclass(cls, enum.Enum) and member in cls.__members__:
            value = cls.__members__[member]
            type.__setattr__(cls, member, EnumValue(self, cls, member, value))
            return
        home = next((c for c in cls.__mro__ if member in vars(c)), None)
        if home is None:
            home = next((c for c in cls.__mro__ if member in vars(c).get("__annotations__", {})),
                        None)
            if home is not None and (home, member) not in done:
                done.add((home, member))
                setattr(home, member, Stored(self, member))
            return
        raw, own = vars(home)[member], home.__module__ != "builtins"
        if not own:
            home = cls
        if (home, member) in done:
            return
        done.add((home, member))
        if not own:  # a method of list
            def method(self: Any, *args: Any) -> Any:
                return raw(self, *args)

            type.__setattr__(cls, member, self._function(method, member, lambda s, *a: type(s)))
            return
        type.__setattr__(home, member, self._recording(home, member, raw))
        for sub in descendants(cls):  # tactician's own, that have their own
            if member in vars(sub) and (sub, member) not in done and not is_test(sub):
                done.add((sub, member))
                type.__setattr__(sub, member, self._recording(sub, member, vars(sub)[member]))

    def _recording(self, home: type, member: str, raw: Any) -> Any:
        if isinstance(raw, staticmethod):
            return staticmethod(self._function(raw.__func__, member, lambda *a: home))
        if isinstance(raw, classmethod):
            return classmethod(self._function(raw.__func__, member, lambda c, *a: c))
        if isinstance(raw, types.FunctionType):
            return self._function(raw, member, lambda s, *a: type(s))
        if hasattr(type(raw), "__set__"):
            return Data(self, member, raw)
        if isinstance(raw, type) or not hasattr(type(raw), "__get__"):
            return Stored(self, member, raw)
        return NonData(self, member, raw)

    def _function(self, f: Callable[..., Any], member: str, owner: Callable[..., type]) -> Any:
        usage = self

        @functools.wraps(f)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if usage.by_test():
                usage.hit(owner(*args), member)
            return f(*args, **kwargs)

        return recorded

    def _watch_subclasses(self) -> None:
        """Tests' own classes note when their methods are called."""
        usage = self
        for cls in self.names:
            if issubclass(cls, enum.Enum) or any(b in self.names for b in cls.__mro__[1:]):
                continue

            def init_subclass(sub: type, **kwargs: Any) -> None:
                usage.watch(sub)

            try:
                cls.__init_subclass__ = classmethod(init_subclass)  # type: ignore[assignment]
            except TypeError:
                continue  # a class of the interpreter, such as list
            for sub in descendants(cls):
                self.watch(sub)

    def watch(self, sub: type) -> None:
        """Wraps the methods of a test's class that stand for members of the API."""
        wanted = {m for c in sub.__mro__ for _, members in self.names.get(c, ()) for m in members}
        for name, f in list(vars(sub).items()):
            if name not in wanted or not isinstance(f, types.FunctionType):
                continue
            if f.__code__.co_filename.startswith(str(HERE)) and not hasattr(f, "__wrapped__"):
                setattr(sub, name, self._override(f, name))

    def _override(self, f: Callable[..., Any], name: str) -> Any:
        usage = self

        @functools.wraps(f)
        def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
            usage.hit(type(self), name)
            return f(self, *args, **kwargs)

        return recorded

    def _watch_module(self, module: types.ModuleType, prefix: str) -> None:
        usage = self
        listed = {n.removeprefix("plugin."): n for n in self.inventory
                  if n.startswith("plugin.") == bool(prefix)}
        if not prefix:
            for kind in ("functions", "constants"):
                listed |= {n: f"{kind}.{n}" for n in self.inventory[kind]}

        class Watched(types.ModuleType):
            def __getattribute__(self, name: str) -> Any:
                if name in listed and usage.by_test() and usage.used is not None:
                    usage.used.add(listed[name])
                return super().__getattribute__(name)

        module.__class__ = Watched


def resolve(module: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        module = getattr(module, part, None)
    return module


def is_test(cls: type) -> bool:
    """Whether a class is defined by a test."""
    module = sys.modules.get(cls.__module__)
    return str(getattr(module, "__file__", "")).startswith(str(HERE))


def descendants(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from descendants(sub)


class EnumValue:
    """A value of an enum."""

    def __init__(self, usage: Usage, cls: type, name: str, value: Any):
        self.usage, self.cls, self.name, self.value = usage, cls, name, value

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        if self.usage.by_test():
            self.usage.hit(self.cls, self.name)
        return self.value


class Data:
    """A property, or another descriptor that takes values."""

    def __init__(self, usage: Usage, name: str, raw: Any):
        self.usage, self.name, self.raw = usage, name, raw
        self.__doc__ = getattr(raw, "__doc__", None)

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        if obj is None:
            return self.raw.__get__(obj, owner)
        if self.usage.by_test():
            self.usage.hit(type(obj), self.name)
        return self.raw.__get__(obj, owner)

    def __set__(self, obj: Any, value: Any) -> None:
        if self.usage.by_test():
            self.usage.hit(type(obj), self.name)
        self.raw.__set__(obj, value)

    def __delete__(self, obj: Any) -> None:
        self.raw.__delete__(obj)


class NonData:
    """A descriptor that only gives values."""

    def __init__(self, usage: Usage, name: str, raw: Any):
        self.usage, self.name, self.raw = usage, name, raw

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        if self.usage.by_test():
            self.usage.hit(owner if obj is None else type(obj), self.name)  # type: ignore[arg-type]
        return self.raw.__get__(obj, owner)


_MISSING = object()


class Stored:
    """An attribute of objects, perhaps with a value in the class."""

    def __init__(self, usage: Usage, name: str, default: Any = _MISSING):
        self.usage, self.name, self.default = usage, name, default

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        if self.usage.by_test():
            self.usage.hit(owner if obj is None else type(obj), self.name)  # type: ignore[arg-type]
        value = self.default if obj is None else vars(obj).get(self.name, self.default)
        if value is _MISSING:
            raise AttributeError(f"no attribute {self.name!r}")
        return value

    def __set__(self, obj: Any, value: Any) -> None:
        if self.usage.by_test():
            self.usage.hit(type(obj), self.name)
        vars(obj)[self.name] = value

    def __delete__(self, obj: Any) -> None:
        del vars(obj)[self.name]


# --- hooks of pytest ------------------------------------------------------------------------

USAGE = Usage()
_left_out: list[str] = []


def pytest_collect_file(file_path: Path) -> None:
    if file_path.name.startswith("test_") and is_recorded(file_path):
        USAGE.install()


def pytest_deselected(items: Iterable[pytest.Item]) -> None:
    _left_out.extend(i.nodeid for i in items
                     if is_recorded(i.path) and i.get_closest_marker("slow") is None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name == LAST)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not is_recorded(item.path):
        yield
        return
    USAGE.used = set()
    callspec = getattr(item, "callspec", None)
    USAGE.hit_values({} if callspec is None else callspec.params)
    yield
    USAGE.write(item.nodeid)
    USAGE.used = None


def missing_files(items: list[pytest.Item]) -> list[str]:
    """Recorded test files and tests that this run leaves out."""
    have = {i.path.resolve() for i in items}
    files = [p for p in HERE.rglob("test_*.py") if is_recorded(p)]
    return [str(p.relative_to(HERE)) for p in files if p not in have] + _left_out
