"""YAML of bounded size: no file keeps a reader busy for ever, however few its characters are."""

from __future__ import annotations

import yaml

DEPTH = 100  # levels of nesting
NODES = 1_000_000  # mappings, lists and scalars with every alias written out
DIGITS = 100


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader that refuses deep nesting, aliases that multiply, and endless numbers, each as a MarkedYAMLError."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # nodes under a node, itself included, by its identity

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        """The next node, of an event stream of whatever size."""
        event = self.peek_event()
        alias = isinstance(event, yaml.AliasEvent)
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias of what it stands in", event.start_mark)
        if node is not None and not alias:
            self._sizes[id(node)] = size = 1 + sum(self._sizes[id(part)] for part in _parts(node))
            if size > NODES:
                text = f"more than {NODES} values with its aliases written out"
                raise yaml.composer.ComposerError(None, None, text, event.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """The value of ``node``."""
        if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str") and len(node.value) > DIGITS:
            raise yaml.constructor.ConstructorError(None, None, f"a value of {len(node.value)} digits", node.start_mark)
        return super().construct_object(node, deep)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
