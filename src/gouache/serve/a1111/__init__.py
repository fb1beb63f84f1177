"""A1111's `/sdapi/v1`: its fields, its replies, and real behaviour behind every field that is accepted."""
