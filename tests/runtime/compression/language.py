"""A small language for convergence tests: sentences of a grammar, the same text everywhere."""

import random

import torch
from torch import nn

GRAMMAR = {
    "text": ["sentence . text", "sentence , and sentence . text", "sentence ."],
    "sentence": [
        "noun verb noun",
        "noun verb noun place",
        "noun verb that sentence",
        "noun moves place",
    ],
    "noun": ["the thing", "the adjective thing", "the adjective adjective thing", "name"],
    "thing": [
        "fox",
        "river",
        "lantern",
        "machine",
        "garden",
        "signal",
        "compiler",
        "letter",
        "captain",
        "winter",
    ],
    "adjective": ["old", "quiet", "green", "distant", "careful", "broken", "early"],
    "name": ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald"],
    "verb": ["sees", "follows", "mends", "forgets", "carries", "believes"],
    "moves": ["sleeps", "waits", "grows", "returns"],
    "place": ["near noun", "under noun", "behind noun", "before noun"],
}


def write(length: int, seed: int = 0) -> str:
    """Text of the grammar, at least `length` characters."""
    draw, tokens = random.Random(seed), []

    def expand(symbol: str) -> None:
        if symbol in GRAMMAR:
            for part in draw.choice(GRAMMAR[symbol]).split():
                expand(part)
        else:
            tokens.append(symbol)

    while sum(map(len, tokens)) + len(tokens) < length:
        expand("text")
    return " ".join(tokens)


class Model(nn.Module):
    """One causal attention block over characters."""

    def __init__(self, letters: int, width: int = 64, context: int = 32) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(context, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, letters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.letter(tokens) + self.place.weight[: tokens.shape[1]]
        q, k, v = (
            t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x))


class Corpus:
    """Batches of a text, different for every rank and step."""

    def __init__(self, length: int = 40_000, context: int = 32) -> None:
        text = write(length)
        self.letters = sorted(set(text))
        codes = [self.letters.index(c) for c in text]
        split = len(codes) * 9 // 10
        self.train, self.test = torch.tensor(codes[:split]), torch.tensor(codes[split:])
        self.context = context

    def batch(self, step: int, rank: int, size: int = 16) -> torch.Tensor:
        draw = torch.Generator().manual_seed(step * 64 + rank)
        starts = torch.randint(len(self.train) - self.context - 1, (size,), generator=draw)
        return torch.stack([self.train[s : s + self.context + 1] for s in starts])

    def loss(self, model: Model, tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def test_loss(self, model: Model) -> float:
        """Loss on text that was not trained on."""
        count = len(self.test) // (self.context + 1)
        with torch.no_grad():
            tokens = self.test[: count * (self.context + 1)].view(count, -1)
            return self.loss(model, tokens).item()


def train(levels, make, corpus: Corpus, steps: int, seed: int = 7) -> tuple[float, dict]:
    """Held-out loss and weights of this rank after `steps` of `make(parameters, levels)`."""
    rank = levels.all.index
    model = Model(len(corpus.letters))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.05, generator=draw)
    for layer in (model.qkv, model.out, model.up, model.down, model.head):
        nn.init.zeros_(layer.bias)
    optimizer = make(model.parameters(), levels)
    for step in range(steps):
        for group in optimizer.param_groups:
            rate = min((step + 1) / 20, 0.1 + 0.9 * (1 - step / steps))  # up, then down to a tenth
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * rate
        optimizer.zero_grad()
        corpus.loss(model, corpus.batch(step, rank)).backward()
        optimizer.step()
    return corpus.test_loss(model), model.state_dict()
