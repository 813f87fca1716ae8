"""What a model computes of rows part by part is computed of all rows."""

import torch
from torch.nn import functional as F

from plait.tests.ir.capture.judged import CLASSES, WIDTH, Net, agrees, make

SAMPLES, TOKENS = 4, 5


class Chunked(Net):
    def forward(self, x, y):
        hidden, labels = self.hidden(x).flatten(0, 1), y.flatten()
        parts = [
            F.cross_entropy(self.head(rows), some, ignore_index=0)
            for rows, some in zip(hidden.chunk(3), labels.chunk(3), strict=True)
        ]
        total = torch.stack(parts).mean()
        for start in reversed(range(0, len(labels), 4)):
            some = self.head(hidden[start : start + 4])
            total = total + some.logsumexp(-1).square().mean() + some[0, 0]
        joined = torch.cat([self.head(rows).view(-1, TOKENS, CLASSES) for rows in hidden.split(10)])
        single = torch.cat([self.head(row).tanh() for row in hidden.split(1, -2)])
        return total + joined.square().sum(1).mean() + (single * single.detach()).mean()


def test_rows_in_parts_are_rows():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (SAMPLES, TOKENS), generator=generator)
    model = agrees(make(Chunked), {"x": x, "y": y})
    heads = [
        op for f in model.functions for op in f.ops if op.target == "plait.cross_entropy.default"
    ]
    assert len(heads) == 1
    assert not [op for f in model.functions for op in f.ops if "split" in op.target]
