"""What a .proto file says on the wire, and the published files to compare ours with."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from betterproto2_compiler.lib.google.protobuf import DescriptorProto, EnumDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).parents[2]


class Wire:
    """The messages, enums and calls of a .proto file, as far as a peer can see them."""

    def __init__(self, proto: Path) -> None:
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={proto.parent}"]
        output = subprocess.check_output([*protoc, "--descriptor_set_out=/dev/stdout", proto.name])
        self._file = FileDescriptorSet.parse(output).file[0]

    @cached_property
    def messages(self) -> dict[str, dict[str, object]]:
        """Each message's fields: number, type, label, type name, whether absence shows, and oneof."""
        return {name: dict(_fields(message)) for name, message in self._messages()}

    @cached_property
    def enums(self) -> dict[str, dict[str, int]]:
        """Each enum's values."""
        inner = [(f"{name}.{enum.name}", enum) for name, message in self._messages() for enum in message.enum_type]
        outer: list[tuple[str, EnumDescriptorProto]] = [(enum.name, enum) for enum in self._file.enum_type]
        return {name: {value.name: value.number for value in enum.value} for name, enum in inner + outer}

    @cached_property
    def calls(self) -> dict[str, object]:
        """Each call's path, with its request, its reply and which of them are streams."""
        return {
            f"/{self._file.package}.{service.name}/{call.name}": (
                call.input_type,
                call.output_type,
                call.client_streaming,
                call.server_streaming,
            )
            for service in self._file.service
            for call in service.method
        }

    def _messages(self) -> Iterator[tuple[str, DescriptorProto]]:
        for message in self._file.message_type:
            yield from _with_nested(message, message.name)


def published(module: str, path: str) -> Path:
    """A file of a Go module (`module@version`), from the module proxy; downloaded once into .cache."""
    answer = subprocess.check_output([ROOT / "scripts" / "go", *f"mod download -json {module}".split()])
    return Path(json.loads(answer)["Dir"]) / path


def _with_nested(message: DescriptorProto, name: str) -> Iterator[tuple[str, DescriptorProto]]:
    yield name, message
    for nested in message.nested_type:
        yield from _with_nested(nested, f"{name}.{nested.name}")


def _fields(message: DescriptorProto) -> Iterator[tuple[str, object]]:
    for field in message.field:
        oneof = None if field.oneof_index is None else message.oneof_decl[field.oneof_index].name
        yield field.name, (field.number, field.type, field.label, field.type_name, field.proto3_optional, oneof)
