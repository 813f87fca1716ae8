"""draft"""
import hashlib, msgspec
def dump(value, format): return msgspec.json.format(msgspec.json.encode({"format": format, "version": 1, **msgspec.to_builtins(value)}), indent=1)
def load(data, type, format):
    d = msgspec.json.decode(data); d.pop("format"); d.pop("version"); return msgspec.convert(d, type)
def digest(value): return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:16]
