"""The compiled protocol is the one in tests/data/p2p_fields.tsv, row for row and in both directions."""

import csv
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from modelexpress.wire import p2p_pb2

TABLE = Path(__file__).parents[1] / "data" / "p2p_fields.tsv"
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT64: "int64",
}
Row = tuple[str, ...]


def type_of(field: FieldDescriptor) -> str:
    """Return the type of a field as the table writes it."""
    if field.enum_type is not None:
        return str(field.enum_type.full_name)
    if field.message_type is None:
        return SCALARS[field.type]
    if field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return f"map<{type_of(key)},{type_of(value)}>"
    return str(field.message_type.full_name)


def row_of(message: Descriptor, field: FieldDescriptor) -> Row:
    """Return the table's row of a field; an `optional` is a oneof of its own in the descriptor."""
    kind = type_of(field)
    group = field.containing_oneof
    optional = group is not None and group.name == f"_{field.name}"
    label = "optional" if optional else "repeated" if field.is_repeated and not kind.startswith("map<") else ""
    oneof = group.name if group is not None and not optional else ""
    note = "deprecated" if field.GetOptions().deprecated else ""
    return (message.full_name, field.name, str(field.number), kind, label, oneof, note)


def compiled() -> Iterator[Row]:
    """Return the rows of the compiled protocol."""
    file = p2p_pb2.DESCRIPTOR
    for service in file.services_by_name.values():
        for call in service.methods:
            yield (service.full_name, call.name, "rpc", call.input_type.full_name, "", call.output_type.full_name, "")
    for enum in file.enum_types_by_name.values():
        for value in enum.values:
            yield (enum.full_name, value.name, str(value.number), "enum", "", "", "")
    for message in file.message_types_by_name.values():
        for field in message.fields:
            yield row_of(message, field)


def test_the_compiled_protocol_is_the_table() -> None:
    with TABLE.open(encoding="utf-8", newline="") as table:
        _, *expected = (tuple(row) for row in csv.reader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = list(compiled())
    assert sorted(found) == sorted(expected)
