"""Random batches for the models of the zoo."""

import torch

VOCABULARY, CLASSES = 96, 6
Batch = dict[str, torch.Tensor]


def text(batch: int, seq: int, vocab: int = VOCABULARY) -> Batch:
    ids = torch.randint(0, vocab, (batch, seq))
    return {"input_ids": ids, "labels": torch.randint(0, vocab, (batch, seq))}


def padded(batch: int, seq: int) -> Batch:
    """Text of which the last three tokens are padding."""
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[:, -3:] = 0
    return {**text(batch, seq), "attention_mask": mask}


def pictures(batch: int, size: int) -> Batch:
    return {
        "pixel_values": torch.randn(batch, 3, size, size),
        "labels": torch.randint(0, CLASSES, (batch,)),
    }


def captioned(batch: int, size: int, seq: int) -> Batch:
    """Pictures and their captions, for a contrastive loss."""
    return {
        "input_ids": text(batch, seq)["input_ids"],
        "pixel_values": torch.randn(batch, 3, size, size),
        "return_loss": True,
    }


def waves(batch: int, samples: int) -> Batch:
    return {
        "input_values": torch.randn(batch, samples),
        "labels": torch.randint(0, CLASSES, (batch,)),
    }
