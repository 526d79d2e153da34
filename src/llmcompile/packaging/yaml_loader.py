"""PyYAML's safe loader with a bound on merge keys, which double a mapping in a line."""

from __future__ import annotations

import yaml

_MOST_MERGED = 100_000
_MERGE = "tag:yaml.org,2002:merge"


class BoundedLoader(yaml.SafeLoader):
    """The safe loader, which ends where "<<" would copy more entries than any file has."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take over what is merged into a mapping.

        Raises:
            yaml.constructor.ConstructorError: It is too much.
        """
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(part, yaml.MappingNode):
                    self.flatten_mapping(part)
                    self._merged += len(part.value)
                if self._merged > _MOST_MERGED:
                    problem = f"more than {_MOST_MERGED} entries taken over by <<"
                    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        super().flatten_mapping(node)
