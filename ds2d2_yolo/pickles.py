"""What a pickle asks for, read from its opcodes alone: nothing of it is imported, made or called."""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what unpicklers make of Python 2's names
from collections.abc import Iterator
from dataclasses import dataclass, field


class Name(str):
    """The dotted name of a class or function that a pickle asks for."""


class Text(str):
    """A string that a pickle holds."""


@dataclass
class Wants:
    """What a pickle asks for.

    Attributes:
        names: Classes and functions, in the order in which they come.
        calls: What is called and with what. Arguments are `Name`, `Text`, tuples of these, or ``None`` for all else.
        texts: Every string.
    """

    names: dict[str, None] = field(default_factory=dict)
    calls: list[tuple] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)


class Broken(ValueError):
    """No pickle, or one cut short; ``wants``: what it had asked for until then."""

    def __init__(self, wants: Wants):
        super().__init__("no whole pickle")
        self.wants = wants


_MARK = object()
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = {"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3}


def read(pickle) -> Wants:
    """Follow one pickle to its end, as an unpickler would, with stand-ins for all objects.

    Args:
        pickle: Bytes, or a binary file, which is left behind the pickle's last byte.

    Raises:
        Broken: It is no pickle, or one cut short.
    """
    wants, stack, memo = Wants(), [], {}
    try:
        for op, argument, _ in pickletools.genops(pickle):
            if not _remember(op.name, argument, stack, memo):
                _step(op, argument, stack, wants)
    except (IndexError, KeyError, OverflowError, StopIteration, ValueError) as error:
        raise Broken(wants) from error
    return wants


def today(module: str, attribute: str) -> tuple[str, str]:
    """Return the names that Python 3 has for a class or function, and for its module."""
    return NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))


def names_in(value) -> Iterator[Name]:
    """Every `Name` in an argument, however deep in tuples, which may be long only by repeating themselves."""
    seen, left = set(), [value]
    while left:
        one = left.pop()
        if isinstance(one, Name):
            yield one
        elif isinstance(one, tuple) and id(one) not in seen:
            seen.add(id(one))
            left.extend(one)


def _remember(name: str, argument, stack: list, memo: dict) -> bool:
    if name in _PUT:
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in _GET:
        stack.append(memo[argument])
    elif name == "DUP":
        stack.append(stack[-1])
    else:
        return False
    return True


def _step(op, argument, stack: list, wants: Wants) -> None:
    name = op.name
    if name == "MARK":
        stack.append(_MARK)
    elif name == "GLOBAL":
        stack.append(_named(*argument.split(" ", 1), wants))
    elif name == "STACK_GLOBAL":
        module, attribute = _pop(stack, 2)
        stack.append(_named(module or "", attribute or "", wants))
    elif name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name in _TUPLES:
        stack.append(_pop(stack, _TUPLES[name]))
    elif name in _CALLS:
        wants.calls.append((name, *_pop(stack, _CALLS[name])))
        stack.append(None)
    elif name == "INST":
        wants.calls.append((name, _named(*argument.split(" ", 1), wants), tuple(_pop_to_mark(stack))))
        stack.append(None)
    elif name == "OBJ":
        function, *arguments = _pop_to_mark(stack)
        wants.calls.append((name, function, tuple(arguments)))
        stack.append(None)
    else:
        _plain(op, argument, stack, wants)


def _plain(op, argument, stack: list, wants: Wants) -> None:
    """Opcodes that make plain values or fill objects, by what pickletools says of their use of the stack."""
    before = op.stack_before
    if pickletools.markobject in before:
        _pop_to_mark(stack)
        before = before[: before.index(pickletools.markobject)]
    _pop(stack, len(before))
    if isinstance(argument, str) and ("UNICODE" in op.name or "STRING" in op.name):
        wants.texts.add(argument)
        stack.append(Text(argument))
    else:
        stack.extend([None] * len(op.stack_after))


def _named(module: str, attribute: str, wants: Wants) -> Name:
    module, attribute = today(module, attribute)
    # Newer protocols follow the dots: os.system in a module that imports os, whatever the module's name promises
    name = f"{attribute} in {module}" if "." in attribute else f"{module}.{attribute}"
    wants.names[name] = None
    return Name(name)


def _pop(stack: list, count: int) -> tuple:
    if count > len(stack):
        raise IndexError("more is taken from the stack than is there")
    at = len(stack) - count
    values = tuple(stack[at:])
    del stack[at:]
    return values


def _pop_to_mark(stack: list) -> list:
    at = next(i for i in reversed(range(len(stack))) if stack[i] is _MARK)
    values = stack[at + 1 :]
    del stack[at:]
    return values
