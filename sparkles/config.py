"""Catch the mistakes in a config before anything is built, and say what would have been right.

The signature of a constructor is the schema: a YAML node with `_target_` holds its keyword arguments.
`validate` reports every node that its constructor would refuse, all at once. `command` makes a program of a
function that takes a config: the user's mistakes end it with a message, bugs with a traceback.
"""

import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from inspect import Parameter
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.errors import CompactHydraException, ConfigCompositionException, InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sparkles.types import InputError

CONFIG_DIR = Path(__file__).resolve().parents[1] / "conf"
_INSTANTIATE_KEYS = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}
_CLOSED_PIPE = 141
"""What a shell says of programs that end so: 128 and the number of SIGPIPE."""


class ConfigError(InputError):
    """Every problem found in one config, one per line."""


def validate(cfg: DictConfig) -> None:
    """Compare each `_target_` node with the signature it will call; import the targets, build nothing.

    A value fits when its type hint allows it as YAML can write it: a list fits `tuple[int, ...]`, a string
    fits `Path`, an int fits `float`. What cannot be told beforehand (a type variable, a value that is itself
    built from a `_target_`) is left to the constructor.

    Raises:
        ConfigError: naming each unknown, missing or ill-typed argument, each `???` and each unknown target.
    """
    try:
        tree = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        # Most often some `${...}` leads to a `???`, which OmegaConf tells in terms of the former.
        written = OmegaConf.to_container(cfg, resolve=False)
        missing = "\n  ".join(map(_no_value, missing_keys(written)))
        raise ConfigError(missing or f"the config cannot be resolved: {error}") from error
    problems = list(_problems(tree))
    if problems:
        raise ConfigError("\n  ".join(["the config does not match the code:", *problems]))


def _problems(tree: object) -> Iterator[str]:
    """What is wrong at each node of a resolved config."""
    for path, node in _nodes(tree):
        if node == "???":
            yield _no_value(path)
        elif isinstance(node, dict) and "_target_" in node:
            yield from _call_problems(path, node)


def missing_keys(tree: object) -> list[str]:
    """The keys of an unresolved config that have no value yet.

    >>> missing_keys({"weights": {"vision": "???"}, "seed": 0})
    ['weights.vision']
    """
    return [path for path, node in _nodes(tree) if node == "???"]


def fill_missing(node: Any, path: str = "") -> Any:
    """An unresolved config in which what has no value yet has its own name for one.

    >>> fill_missing({"weights": {"vision": "???"}, "seed": 0})
    {'weights': {'vision': '<weights.vision>'}, 'seed': 0}
    """
    if isinstance(node, dict):
        return {key: fill_missing(value, f"{path}.{key}".lstrip(".")) for key, value in node.items()}
    if isinstance(node, list):
        return [fill_missing(value, f"{path}[{index}]") for index, value in enumerate(node)]
    return f"<{path}>" if node == "???" else node


def _no_value(path: str) -> str:
    return f"{path}: no value yet; set {path}=..."


def _nodes(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """A node and everything below it, each with its path.

    >>> [path for path, _ in _nodes({"data": {"batch_size": 8, "sizes": [1]}})]
    ['', 'data', 'data.batch_size', 'data.sizes', 'data.sizes[0]']
    """
    yield path, node
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _nodes(child, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _nodes(child, f"{path}[{index}]")


def _call_problems(path: str, node: dict[str, Any]) -> Iterator[str]:
    """What the target of `node` would refuse."""
    name = node["_target_"]
    try:
        target = get_object(name)
        signature = inspect.signature(target)
    except ImportError as error:
        yield f"{path}._target_: cannot import {name!r}: {error}"
        return
    except (TypeError, ValueError):  # some builtins have no signature to compare with
        return
    parameters = signature.parameters
    positional = [key for key, p in parameters.items() if p.kind <= Parameter.POSITIONAL_OR_KEYWORD]
    known = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given = {key: value for key, value in node.items() if key not in _INSTANTIATE_KEYS}

    if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        for key in [key for key in given if key not in known]:
            close = _close_words(key, known)
            advice = _did_you_mean(close) if close else f"; it takes {', '.join(known) or 'none'}"
            yield f"{path}.{key}: {name} has no such argument{advice}"
    filled = {*given, *positional[: len(node.get("_args_", []))]}
    missing = [key for key in known if parameters[key].default is Parameter.empty and key not in filled]
    if missing and not node.get("_partial_"):
        yield f"{path}: {name} needs {', '.join(missing)}; set {path}.{missing[0]}=..."
    hints = _hints(target)
    for key in [key for key in given if key in known and key in hints]:
        value, default = given[key], parameters[key].default
        if value not in ("???", default) and not _fits(value, hints[key]):
            yield f"{path}.{key}: expected {_spell(hints[key])}, got {value!r}"


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # names that exist for the type checker only
        return {}


def _fits(value: object, hint: Any) -> bool:
    """Whether a plain value from YAML may go where `hint` is written.

    >>> _fits(None, int | None), _fits([1, 2], tuple[int, ...]), _fits("abc", Iterable[str]), _fits(True, int)
    (True, True, False, False)
    """
    origin, args = get_origin(hint), get_args(hint)
    container = origin or hint
    if hint is Any or (isinstance(value, dict) and "_target_" in value):
        return True
    if origin is Annotated:
        return _fits(value, args[0])
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    if hint in (bool, int, str):
        return type(value) is hint
    if not inspect.isclass(container):
        return True
    if isinstance(value, str):
        return issubclass(container, PurePath) or container is object
    if isinstance(value, list) and issubclass(container, Iterable) and not issubclass(container, Mapping):
        if container is tuple and args and args[-1] is not ...:
            return len(value) == len(args) and all(map(_fits, value, args))
        return not args or all(_fits(item, args[0]) for item in value)
    if isinstance(value, dict) and issubclass(container, Mapping):
        return len(args) != 2 or all(_fits(item, args[1]) for item in value.values())
    try:
        return isinstance(value, container)
    except TypeError:  # a Protocol that cannot be checked at run time
        return True


def _spell(hint: Any) -> str:
    """The hint as a reader would write it.

    >>> _spell(int | None), _spell(Literal["per_sample", "per_batch"])
    ('int | None', "one of 'per_sample', 'per_batch'")
    """
    if hint is NoneType:
        return "None"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_spell, get_args(hint)))
    if inspect.isclass(hint) and get_origin(hint) is None:
        return hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "")


def register_resolvers() -> None:
    """What configs may say: `${repo:some/file}`, a path of this checkout, and `${if:${flag},yes,no}`."""
    OmegaConf.register_new_resolver("repo", lambda path: str(CONFIG_DIR.parent / path), replace=True)
    OmegaConf.register_new_resolver("if", lambda flag, yes, no: yes if flag else no, replace=True)


def command(
    config_name: str, *, leaves_files: bool = True
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a function of a config a program that composes `conf/<config_name>.yaml` from the command line.

    An InputError, an OSError and Ctrl-C end it with their message alone, an unknown override with close matches.
    Whatever else is raised is a bug and keeps its traceback, also when `instantiate` wrapped it.

    Args:
        leaves_files: in a run directory, which whoever stops it is reminded of.
    """
    stopped = "\nstopped" + ("; what was finished is in the run directory" if leaves_files else "")

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        run = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(
            _CommandTask(function)
        )

        @functools.wraps(function)
        def main() -> None:
            register_resolvers()
            try:
                with _silent_when_unread():
                    run()
            except SystemExit as exit_:
                # Hydra and Lightning exit while they handle an error, so the error is still attached.
                if isinstance(exit_.__context__, KeyboardInterrupt):
                    sys.exit(stopped)
                if advice := explain(exit_.__context__):
                    print(f"\n{advice}", file=sys.stderr)
                raise
            except KeyboardInterrupt:
                sys.exit(stopped)

        return main

    return decorate


@contextmanager
def terminated_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, do what Ctrl-C does, also where a shell has that ignored."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT)),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silent_when_unread() -> Iterator[None]:
    """End the program without a word, as others do, when whoever read its output has gone (`| head`)."""
    try:
        try:
            yield
        finally:
            print(end="", flush=True)  # Python would do so at its very end, and complain there
    except BrokenPipeError:
        if _is_read():
            raise
        # What is still held back goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_CLOSED_PIPE)
    except SystemExit as exit_:
        if isinstance(exit_.__context__, BrokenPipeError):  # rich's consoles exit so
            sys.exit(_CLOSED_PIPE)
        raise


def _is_read() -> bool:
    """Whether there still is somebody at the other end of the output; costs them an empty line."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return False
    return True


class TaskFunction:
    """A function of a config for Hydra, whose launchers may call it in processes that they start."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        register_resolvers()  # for the config that the new process composes before the call
        self.__dict__.update(state)


class _CommandTask(TaskFunction):
    """A command's function, with the user's mistakes as what Hydra prints without a traceback."""

    def __init__(self, function: Callable[[DictConfig], None]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, cfg: DictConfig) -> None:
        try:
            self.function(cfg)
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, BrokenPipeError) and not _is_read():
                sys.exit(_CLOSED_PIPE)  # which Hydra lets pass
            if isinstance(cause, InputError | OSError):
                raise CompactHydraException(message(cause)) from error
            if cause is not error:
                raise cause from None
            raise


def dispatch(program: str, tasks: Sequence[Callable[..., None]], otherwise: Callable[[], None]) -> None:
    """Run the task that the command line names, with its `key=value` pairs; `otherwise` where it names none.

    `--help` behind a task's name prints its docstring.
    """
    by_name = {task.__name__: task for task in tasks}
    name, *arguments = sys.argv[1:] or [""]
    if name not in by_name:
        # What is no `key=value` and no option can only be meant for a task.
        if name and "=" not in name and not name.startswith("-"):
            sys.exit(
                f"unknown command {name!r}; expected {', '.join(by_name)}, or key=value. --help explains them"
            )
        otherwise()
    elif {"-h", "--help"} & set(arguments):
        print(f"python -m {program} {name} key=value ...\n\n{inspect.getdoc(by_name[name])}")
    else:
        try:
            with _silent_when_unread():
                call(name, by_name[name], arguments)
        except (InputError, OSError) as error:
            sys.exit(str(error))


def call(name: str, task: Callable[..., None], pairs: Iterable[str]) -> None:
    """Call `task` with the `key=value` pairs of a command line that needs no composed config.

    A parameter that takes a list may be given several times, or as `[a,b]`. `true`, `null` and numbers are read as
    such where the type hint allows them, and as text where it does not.

    Raises:
        InputError: a pair that `task` does not take, or one that it needs and is not there.
    """
    parameters, hints = inspect.signature(task).parameters, get_type_hints(task)
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"{name}: expected key=value, got {pair!r}")
        if key not in parameters:
            close = _close_words(key, parameters)
            advice = _did_you_mean(close) if close else f"; it takes {', '.join(parameters)}"
            raise InputError(f"{name}: unknown key {key!r}{advice}")
        if get_origin(hints[key]) is Sequence:
            texts = text[1:-1].split(",") if text.startswith("[") and text.endswith("]") else [text]
            values = [_value(name, key, one.strip(), get_args(hints[key])[0]) for one in texts if one.strip()]
            given.setdefault(key, []).extend(values)
        else:
            given[key] = _value(name, key, text, hints[key])
    required = [key for key, parameter in parameters.items() if parameter.default is Parameter.empty]
    if missing := [key for key in required if given.get(key) in (None, "")]:
        raise InputError(f"{name}: missing {', '.join(missing)}; give {missing[0]}=...")
    task(**given)


def _value(name: str, key: str, text: str, hint: Any) -> object:
    """
    >>> _value("power", "num", "150", int | None), _value("compare", "run", "2024", str)
    (150, '2024')
    """
    words = {"true": True, "false": False, "null": None}
    for read in (words.__getitem__, int, float, str):
        with suppress(KeyError, ValueError):
            if _fits(value := read(text), hint):
                return value
    raise InputError(f"{name}: {key}={text}; expected {_spell(hint)}")


def root_cause(error: BaseException) -> BaseException:
    """What went wrong while `instantiate` built something; the error itself if it was something else."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def message(error: BaseException) -> str:
    """What an error says, with its notes.

    >>> message(ValueError("Caught ValueError in worker process 0. Traceback: ... builtins.ValueError: no such file"))
    'no such file'
    """
    # A DataLoader's worker hands its traceback over as text, which ends with the message.
    kind = f"{type(error).__module__}.{type(error).__qualname__}: "
    return "\n".join([str(error).rpartition(kind)[2], *getattr(error, "__notes__", ())])


def explain(error: BaseException | None, config_dir: Path = CONFIG_DIR) -> str:
    """Which keys and groups look like the one that Hydra could not override; "" for other errors."""
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else None
    if not isinstance(cause, ConfigAttributeError | ConfigKeyError) or cause.full_key is None:
        return ""
    root = cause.parent_node._get_root() if cause.parent_node is not None else OmegaConf.create()
    keys = [path for path, _ in _nodes(OmegaConf.to_container(root)) if not path.startswith("hydra.")]
    groups = [path.relative_to(config_dir).as_posix() for path in config_dir.rglob("*") if path.is_dir()]
    return (
        f"unknown override {cause.full_key!r}: the config has no such key and conf/ no such group"
        f"{_did_you_mean(_close_keys(cause.full_key, [*keys, *groups]))} `--cfg job` prints every key."
    )


def _close_keys(key: str, known: Collection[str]) -> list[str]:
    """Close by the whole path, then by the last name alone.

    >>> _close_keys("trainer.batchsize", ["data.batch_size", "seed"])
    ['data.batch_size']
    """
    last_names = {name: name.rpartition(".")[2] for name in known}
    close_names = _close_words(key.rpartition(".")[2], last_names.values())
    by_name = [name for name, last_name in last_names.items() if last_name in close_names]
    return list(dict.fromkeys([*_close_words(key, known), *by_name]))[:3]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known.

    >>> nearest("tabel3", ["table3", "demo"]), nearest("x", ["table3"])
    ('; did you mean table3?', '.')
    """
    return _did_you_mean(_close_words(word, known))


def _close_words(word: str, known: Iterable[str]) -> list[str]:
    return get_close_matches(word, sorted(set(known)), n=3, cutoff=0.75)


def _did_you_mean(words: list[str]) -> str:
    return f"; did you mean {' or '.join(words)}?" if words else "."
