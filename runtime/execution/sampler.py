"""The order of samples of a whole training run, by global number: the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ...ir.errors import UsageError


class GlobalBatchSampler(Sampler[list[int]]):
    """Indices of the samples of one global batch after the other, without end; a `batch_sampler` of
    torch's DataLoader.

    Every epoch has a random order of its own, or with `shuffle=False` that of the data set. The n-th
    sample of a training run depends on n, the number of samples and the seed alone, so a run that goes
    on from `start` (a program's `samples`, which its checkpoints store) sees every sample exactly once
    per epoch, whatever ranks and batch sizes it had before.
    """

    def __init__(
        self, samples: int, batch: int, *, start: int = 0, seed: int = 0, shuffle: bool = True
    ) -> None:
        if samples < 1 or batch < 1 or start < 0:
            raise UsageError(
                f"batches of {batch} from {samples} samples, beginning at sample {start}: there must be "
                f"some of each"
            )
        self.samples, self.batch, self.start = samples, batch, start
        self.seed, self.shuffle = seed, shuffle

    def __iter__(self) -> Iterator[list[int]]:
        number, batch = self.start, list[int]()
        while True:
            epoch, place = divmod(number, self.samples)
            order = self.order(epoch)
            for index in order[place:]:
                batch.append(index)
                if len(batch) == self.batch:
                    yield batch
                    batch = []
            number = (epoch + 1) * self.samples

    def order(self, epoch: int) -> list[int]:
        """The samples of an epoch, in their order."""
        if not self.shuffle:
            return list(range(self.samples))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.samples, generator=generator).tolist()
