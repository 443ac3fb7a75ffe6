"""Strict parsing of YAML into plain values, with one-line errors."""

from typing import Any

import yaml

from vggrepro.errors import UserError


class _StrictLoader(yaml.SafeLoader):
    """Loader that rejects duplicate keys, and characters that file names cannot contain."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{text!r} contains an invalid character (line {node.start_mark.line + 1}); remove it")
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"key {key!r} occurs twice (line {node.start_mark.line + 1}); remove one")
        return super().construct_mapping(node, deep)


def load_yaml(text: str, source: str) -> Any:
    """Parses YAML text. Raises UserError, which names `source`, for invalid YAML and duplicate keys."""
    try:
        return yaml.load(text, _StrictLoader)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1})" if mark and "\n" in text.strip() else ""
        raise UserError(f"{source}{where} is not YAML: {error.problem or error.context}; correct or quote it") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{source} is not YAML: remove the character U+{int(error.character):04X}") from None
    except RecursionError:
        raise UserError(f"{source} is nested too deeply; make it flatter") from None
    except Exception as error:  # constructors of tags such as !!int and !!timestamp raise any error
        raise UserError(f"{source} is not YAML: {error}; correct or quote it") from None
