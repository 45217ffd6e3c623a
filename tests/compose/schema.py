"""Whether a dashboard is what Grafana takes for one: read by the types that Grafana generates from its own schema, every value of
its declared type, and nothing lost on the way back."""

import dataclasses
import enum
import json
import sys
import types
import typing

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def check(path, value, wanted, found):
    """Notes in `found` where a value is not of the type that is declared."""
    origin, options = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is typing.Any or isinstance(wanted, (str, typing.TypeVar)):
        return
    if origin in (typing.Union, types.UnionType):
        tries = []
        for option in options:
            tried = []
            check(path, value, option, tried)
            if not tried:
                return
            tries.append(tried)
        # What is wrong inside says more than that the whole is none of these.
        deeper = [tried for tried in tries if not any(words.startswith(f"{path}: ") for words in tried)]
        found.extend(min(deeper, key=len) if deeper else [f"{path}: {value!r} is none of {options}"])
    elif origin is typing.Literal:
        if value not in options:
            found.append(f"{path}: {value!r} is none of {options}")
    elif origin is list:
        if not isinstance(value, list):
            found.append(f"{path}: {value!r} is no list")
        for index, item in enumerate(value if isinstance(value, list) else []):
            check(f"{path}[{index}]", item, options[0], found)
    elif origin is dict:
        if not isinstance(value, dict):
            found.append(f"{path}: {value!r} is no map")
    elif isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        if value not in [item.value for item in wanted] and value not in list(wanted):
            found.append(f"{path}: {value!r} is none of {[item.value for item in wanted]}")
    elif wanted is float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            found.append(f"{path}: {value!r} is no number")
    elif wanted in (int, str, bool, type(None)):
        if type(value) is not wanted:
            found.append(f"{path}: {value!r} is no {wanted.__name__}")
    elif isinstance(wanted, type) and isinstance(value, dict) and hasattr(wanted, "from_json"):
        # Lists of some types are left as they were read.
        read = wanted.from_json(value)
        inside(path, read, found)
        lost(path, value, json.loads(JSONEncoder().encode(read)), found)
    elif isinstance(wanted, type) and not isinstance(value, wanted):
        found.append(f"{path}: {value!r} is no {wanted.__name__}")
    inside(path, value, found)


def inside(path, value, found):
    """The same for the parts of an object that the schema knows."""
    module = type(value).__module__
    if not module.startswith("grafana_foundation_sdk"):
        return
    if dataclasses.is_dataclass(value) or hasattr(value, "__dict__") and not isinstance(value, enum.Enum):
        hints = typing.get_type_hints(type(value))
        for name, part in vars(value).items():
            if part is not None and name in hints:
                check(f"{path}.{name}", part, hints[name], found)


def lost(path, ours, theirs, found):
    """What the schema has no place for does not come back."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key not in theirs:
                found.append(f"{path}.{key}: the schema knows no such key")
            else:
                lost(f"{path}.{key}", value, theirs[key], found)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (mine, other) in enumerate(zip(ours, theirs)):
            lost(f"{path}[{index}]", mine, other, found)
    elif ours != theirs:
        found.append(f"{path}: {ours!r} came back as {theirs!r}")


def problems(page):
    register_default_plugins()
    read = Dashboard.from_json(json.loads(json.dumps(page)))
    found = []
    inside("dashboard", read, found)
    lost("dashboard", page, json.loads(JSONEncoder(sort_keys=True).encode(read)), found)
    return found


def proves_itself(page):
    """A check that finds nothing in a broken dashboard would prove nothing."""
    broken = json.loads(json.dumps(page))
    panel = next(panel for panel in broken["panels"] if panel["type"] == "timeseries")
    panel["gridPos"]["w"] = "wide"
    panel["fieldConfig"]["defaults"]["custom"]["drawStyle"] = "crayon"
    panel["nonsense"] = 1
    noticed = "\n".join(problems(broken))
    for word in ("wide", "crayon", "nonsense"):
        if word not in noticed:
            sys.exit(f"this check does not see {word!r}:\n{noticed}")


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        page = json.load(file)
    proves_itself(page)
    found = problems(page)
    if found:
        sys.exit("\n".join(found))


main()
