"""Encoders of text, and encoders with a decoder."""

from plait.tests.zoo.batches import padded, text
from plait.tests.zoo.decoders import SIZES

POSITIONS = {"max_position_embeddings": 16}


def bert(layers=2, batch=8, seq=12, **config):
    from transformers import BertConfig, BertForMaskedLM

    hf_config = BertConfig(
        num_hidden_layers=layers, num_attention_heads=4, **SIZES, **POSITIONS, **config
    )
    return BertForMaskedLM(hf_config), padded(batch, seq)


def roberta(layers=2, batch=8, seq=12, **config):
    """Positions are counted from the tokens that are not padding."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    hf_config = RobertaConfig(
        num_hidden_layers=layers, num_attention_heads=4, **SIZES, **POSITIONS, **config
    )
    return RobertaForMaskedLM(hf_config), padded(batch, seq)


def distilbert(layers=2, batch=8, seq=12, **config):
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    hf_config = DistilBertConfig(
        dim=32, n_layers=layers, n_heads=4, hidden_dim=48, vocab_size=96, **POSITIONS, **config
    )
    return DistilBertForMaskedLM(hf_config), padded(batch, seq)


def electra(layers=2, batch=8, seq=12, **config):
    """Embeddings narrower than the layers."""
    from transformers import ElectraConfig, ElectraForMaskedLM

    hf_config = ElectraConfig(
        embedding_size=16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        **SIZES,
        **POSITIONS,
        **config,
    )
    return ElectraForMaskedLM(hf_config), padded(batch, seq)


def deberta(layers=2, batch=8, seq=12, **config):
    """Scores have terms of content and of relative position."""
    from transformers import DebertaV2Config, DebertaV2ForMaskedLM

    hf_config = DebertaV2Config(
        num_hidden_layers=layers,
        num_attention_heads=4,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        **SIZES,
        **POSITIONS,
        **config,
    )
    return DebertaV2ForMaskedLM(hf_config), padded(batch, seq)


def t5(layers=2, batch=8, seq=12, **config):
    from transformers import T5Config, T5ForConditionalGeneration

    hf_config = T5Config(
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=layers,
        num_heads=4,
        vocab_size=96,
        decoder_start_token_id=0,
        **config,
    )
    return T5ForConditionalGeneration(hf_config), text(batch, seq)


def bart(layers=2, batch=8, seq=12, **config):
    from transformers import BartConfig, BartForConditionalGeneration

    hf_config = BartConfig(
        d_model=32,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=96,
        decoder_start_token_id=0,
        **POSITIONS,
        **config,
    )
    return BartForConditionalGeneration(hf_config), text(batch, seq)
