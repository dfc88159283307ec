"""The protocols: generated protobuf stubs, and the conversions between their messages and our dataclasses.

Nothing above this package touches a protobuf message's fields.
"""
