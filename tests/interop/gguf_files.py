"""GGUF files to read: by the package's own writer, and put together by hand."""

import struct

import gguf

PREFIXES = ("general", "tokenizer", "split")  # of keys that belong to no architecture


def write(path, tensors, architecture="llama", facts=(), **options):
    """A file by the package's own writer: tensors are arrays or (bytes, type), facts have the architecture's keys."""
    writer = gguf.GGUFWriter(path, architecture, **options)
    for key, value in dict(facts).items():
        add = {bool: "bool", int: "uint32", float: "float32", str: "string"}.get(type(value), "array")
        getattr(writer, f"add_{add}")(
            key if "." in key and key.split(".")[0] in PREFIXES else f"{architecture}.{key}", value
        )
    for name, array in tensors.items():
        data, type_ = array if isinstance(array, tuple) else (array, None)
        writer.add_tensor(name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_bytes(tensors, facts=b"", keys=0, version=3):
    """A file put together by hand: tensors are (name, dims with the fastest first, type, data)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), keys) + facts
    data = b""
    for name, dims, type_, octets in tensors:
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", type_, len(data))
        data += octets + bytes(-len(octets) % 32)
    return head + bytes(-len(head) % 32) + data
