"""How large the parts of a registry request may be, so that no caller fills the registry's memory."""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from modelexpress.errors import RequestInvalid

MAX_MESSAGE_BYTES = 32 << 20
"""A request to the registry: the largest publication seen in fleets has 4.8 MB."""
MAX_ANSWER_BYTES = 64 << 20
"""An answer of the registry: a record, or a listing of `MAX_LISTED` rows."""
MAX_LISTED = 10_000
"""Rows in one listing; the ones heard last come first."""

_CHARACTERS = 4_096
_CHARACTERS_OF = {"worker_id": 256, "pod_name": 256, "pod_uid": 256, "pod_namespace": 256}
_MAP_ENTRIES = 64
_MAP_CHARACTERS = 64 << 10
_MAP_CHARACTERS_OF = {"topology": 4_096}  # repeated in every row of a listing
_ITEMS = 250_000
_BLOB_BYTES = 16 << 20


def check_limits(message: Message, path: str = "") -> None:
    """Refuse a message with a part that is larger than the registry accepts.

    Repeated messages are counted and not looked into: the limit on the whole request bounds them.

    Raises:
        RequestInvalid: Names the first such part, its size and its limit.
    """
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        if _is_map(field):
            _check(name, len(value), _MAP_ENTRIES, "entries")
            characters = sum(len(key) + len(text) for key, text in value.items())
            _check(name, characters, _MAP_CHARACTERS_OF.get(field.name, _MAP_CHARACTERS), "characters")
        elif field.is_repeated:
            _check(name, len(value), _ITEMS, "items")
        elif isinstance(value, Message):
            check_limits(value, f"{name}.")
        elif isinstance(value, str):
            _check(name, len(value), _CHARACTERS_OF.get(field.name, _CHARACTERS), "characters")
        elif isinstance(value, bytes):
            _check(name, len(value), _BLOB_BYTES, "bytes")


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.has_options and kind.GetOptions().map_entry


def _check(name: str, size: int, limit: int, unit: str) -> None:
    if size > limit:
        raise RequestInvalid(f"{name} has {size} {unit}; the limit is {limit}")
