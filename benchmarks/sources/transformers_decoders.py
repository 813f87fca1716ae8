"""Causal language models of transformers that came after those of the zoo: mixtures, hybrids, scans."""

from small import language, languages

MODELS = {
    **languages("afmoe", "apertus", "arcee", "cohere2", "diffllama"),
    **languages("doge", "ernie4_5_moe", "exaone4", "flex_olmo", "glm4_moe"),
    **languages("gpt_oss", "helium", "jetmoe"),
    **languages("llama4_text", "minimax", "minimax_m2", "nanochat", "olmo3"),
    **languages("olmo_hybrid", "phimoe", "qwen2_moe", "qwen3_5_text", "qwen3_next", "seed_oss"),
    **languages("rwkv", "smollm3"),
    **languages("kimi_linear", "bailing_hybrid", "glm_moe_dsa", "deepseek_v4", "mimo_v2_flash"),
    **languages("lfm3", "solar_open", "kolibri1", "flint", "bitnet"),
    "zaya": language("zaya", router_hidden_size=16),
    "axk1": language("axk1", n_group=2, topk_group=1),
    "mpt": language("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "deepseek_v2": language("deepseek_v2", num_experts_per_tok=2, first_k_dense_replace=1),
    "dots1": language("dots1", n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
    "codegen": language("codegen", rotary_dim=8),
    "hunyuan_v1_moe": language("hunyuan_v1_moe", head_dim=8),
    "deepseek_v3": language("deepseek_v3", n_group=2, topk_group=1, first_k_dense_replace=1),
}
