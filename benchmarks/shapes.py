"""Parameters of one layer of public architectures, from their published configurations."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def _experts(count: int, hidden: int, inner: int) -> Shapes:
    shapes = (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner)))
    return tuple((f"expert{e}.{name}", shape) for e in range(count) for name, shape in shapes)


# Hidden 7168, 128 heads, queries of rank 1536, keys and values of rank 512, 256 experts of 2048 and
# one shared (config.json of DeepSeek-V3, 671B).
# fmt: off
DEEPSEEK_V3_LAYER: Shapes = (
    ("q_a", (1536, 7168)), ("q_b", (128 * 192, 1536)), ("kv_a", (512 + 64, 7168)),
    ("kv_b", (128 * 256, 512)), ("o", (7168, 128 * 128)), ("q_norm", (1536,)),
    ("kv_norm", (512,)), ("norm1", (7168,)), ("norm2", (7168,)), ("router", (256, 7168)),
    ("router_bias", (256,)), *_experts(257, 7168, 2048),
)
# fmt: on

# Hidden 8192, 64 heads and 8 of keys and values of 128, inner 28672 (config.json of Llama-3-70B).
# fmt: off
LLAMA_3_70B_LAYER: Shapes = (
    ("q", (8192, 8192)), ("k", (1024, 8192)), ("v", (1024, 8192)), ("o", (8192, 8192)),
    ("norm1", (8192,)), ("norm2", (8192,)), ("gate", (28672, 8192)), ("up", (28672, 8192)),
    ("down", (8192, 28672)),
)
# fmt: on
