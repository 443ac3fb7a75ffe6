"""YAML text to plain values, strictly, with errors in one line."""

from typing import Any

import yaml

from vggrepro.errors import UserError


class _StrictLoader(yaml.SafeLoader):
    """YAML without silently dropped duplicates, and without characters that no name of a file can have."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{text!r} holds a character that no name can have (line {node.start_mark.line + 1})")
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"key {key!r} stands twice (line {node.start_mark.line + 1}); remove one")
        return super().construct_mapping(node, deep)


def load_yaml(text: str, source: str) -> Any:
    """What a YAML text says; `source` is named in errors. Raises UserError, also for a key that stands twice."""
    try:
        return yaml.load(text, _StrictLoader)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1})" if mark and "\n" in text.strip() else ""
        raise UserError(f"{source}{where} is not YAML: {error.problem or error.context}; correct or quote it") from None
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{source} is not YAML: it holds the character U+{int(error.character):04X}; remove it"
        ) from None
    except RecursionError:
        raise UserError(f"{source} is not YAML that is read here: it is nested too deeply; make it flatter") from None
    except Exception as error:  # constructors of tags such as !!int and !!timestamp raise whatever they meet
        raise UserError(f"{source} is not YAML: {error}; correct or quote it") from None
