"""The object graph of a TF2 checkpoint: which object has which variable, whatever the variables are called.

Such a checkpoint names a variable by one of the ways to its object (`backbone/layer_with_weights-0/kernel`), and saves
the whole graph beside them, as the string `_CHECKPOINTABLE_OBJECT_GRAPH`. Source: tensorflow
`core/protobuf/trackable_object_graph.proto`, `python/checkpoint/`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from converters.tensorbundle.wire import read_message, write_field
from rszoo.errors import CheckpointError

#: The name of the graph in a checkpoint.
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
#: How the name of a variable ends.
VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_VALUE = "VARIABLE_VALUE"
# ResNet-RS-350 has 6,000 objects, with the optimizer's 20,000.
_MAX_OBJECTS = 1_000_000


@dataclass
class Node:
    """An object: its children by their attributes' names, its variable's name in the checkpoint, and its slots.

    `key` is None for what is no variable. `slots`: on an optimizer, by the name of a slot, from the number of a
    variable's object to the number of the slot's.
    """

    children: dict[str, int] = field(default_factory=dict)
    key: str | None = None
    slots: dict[str, dict[int, int]] = field(default_factory=dict)


class ObjectGraph:
    """A parsed graph. Objects are numbered; 0 is what was saved.

    Raises:
        CheckpointError: the bytes are damaged, or name objects that there are not.
    """

    def __init__(self, data: bytes) -> None:
        self.nodes: list[Node] = []
        try:
            for number, value in read_message(data):
                if number == 1:
                    self.nodes.append(_parse_node(value))
                if len(self.nodes) > _MAX_OBJECTS:
                    break
        except CheckpointError as error:
            # What reads messages takes them for the index's.
            raise CheckpointError(str(error).replace("checkpoint's index", "checkpoint's object graph")) from error
        if not 0 < len(self.nodes) <= _MAX_OBJECTS:
            raise CheckpointError(f"the checkpoint's object graph is damaged: it has {len(self.nodes)} objects or more")
        for node in self.nodes:
            named = [
                *node.children.values(),
                *(one for slot in node.slots.values() for pair in slot.items() for one in pair),
            ]
            if max(named, default=0) >= len(self.nodes):
                raise CheckpointError(f"the checkpoint's object graph is damaged: there is no object {max(named)}")

    def find(self, start: int, path: str) -> int | None:
        """Return the number of an object by the attributes that lead to it, `a/b`; None if there is none."""
        found: int | None = start
        for name in path.split("/"):
            found = None if found is None else self.nodes[found].children.get(name)
        return found

    def keys_below(self, start: int) -> Iterator[str]:
        """Yield the names of all variables of an object and what it has. Objects may have each other."""
        seen, waiting = {start}, deque([start])
        while waiting:
            node = self.nodes[waiting.popleft()]
            if node.key is not None:
                yield node.key
            new = set(node.children.values()) - seen
            seen |= new
            waiting.extend(sorted(new))

    def slots(self) -> Iterator[tuple[str, int, str]]:
        """Yield each slot of an optimizer: what it is called, its variable's object, and its own variable's name."""
        for node in self.nodes:
            for name, of_name in node.slots.items():
                for variable, slot in of_name.items():
                    if (key := self.nodes[slot].key) is not None:
                        yield name, variable, key


def write_graph(variables: Mapping[str, str], links: Mapping[str, str]) -> bytes:
    """Return the bytes of a graph.

    Args:
        variables: from the path to each variable, `a/b`, to its name in the checkpoint.
        links: from another path to an object to the one in `variables`.
    """
    nodes, numbers = [Node()], {"": 0}
    for path, key in variables.items():
        for name, place, above in _steps(path):
            if place not in numbers:
                numbers[place] = nodes[numbers[above]].children[name] = len(nodes)
                nodes.append(Node())
        nodes[numbers[path]].key = key
    for path, target in links.items():
        *_, (name, _, above) = _steps(path)
        nodes[numbers[above]].children[name] = numbers[target]
    return b"".join(write_field(1, _write_node(node)) for node in nodes)


def _steps(path: str) -> Iterator[tuple[str, str, str]]:
    """Yield each part of a path, the path up to it, and the path before it."""
    place = ""
    for name in path.split("/"):
        above, place = place, f"{place}/{name}" if place else name
        yield name, place, above


def _parse_node(data: int | bytes) -> Node:
    node = Node()
    for number, value in read_message(_bytes(data)):
        if number == 1:
            child = _fields(value)
            node.children[_text(child.get(2, b""))] = _number(child.get(1, 0))
        elif number == 2:
            attribute = _fields(value)
            if _text(attribute.get(1, b"")) == _VALUE:
                node.key = _text(attribute.get(3, b""))
        elif number == 3:
            slot = _fields(value)
            of_name = node.slots.setdefault(_text(slot.get(2, b"")), {})
            of_name[_number(slot.get(1, 0))] = _number(slot.get(3, 0))
    return node


def _write_node(node: Node) -> bytes:
    children = (write_field(1, child) + write_field(2, name.encode()) for name, child in node.children.items())
    written = b"".join(write_field(1, child) for child in children)
    if node.key is not None:
        # The second is the variable's name outside of the graph, by which TensorFlow 1 would look for it.
        full_name = node.key.removesuffix(VALUE_SUFFIX)
        attribute = [_VALUE, full_name, node.key]
        written += write_field(
            2, b"".join(write_field(place, text.encode()) for place, text in enumerate(attribute, 1))
        )
    return written


def _fields(data: int | bytes) -> dict[int, int | bytes]:
    return dict(read_message(_bytes(data)))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise CheckpointError("the checkpoint's object graph is damaged: a number where a message should be")
    return value


def _number(value: int | bytes) -> int:
    # A negative int32 is a number of 64 bits here, and so larger than any object's.
    if not isinstance(value, int):
        raise CheckpointError("the checkpoint's object graph is damaged: a message where a number should be")
    return value


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("the checkpoint's object graph is damaged: a name is not UTF-8") from error
