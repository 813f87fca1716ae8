"""Layers of torch.nn and plain scripts of every kind that unseen models use, as small as can be."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLES = 4


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Body(nn.Module):
    """Two equal blocks, `middle`, a linear layer and a mean of squares."""

    def __init__(self, middle: nn.Module, width: int = 16, out: int | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.middle = middle
        self.last = nn.Linear(out or width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(self.middle(x)).square().mean()


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _body(function, shape: tuple[int, ...] = (SAMPLES, 8, 16), out: int | None = None):
    middle = function if isinstance(function, nn.Module) else Apply(function)
    return Body(middle, shape[-1], out).train(), (torch.randn(shape),)


# complex numbers, Fourier transforms


def complex_rotary():
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            angles = torch.outer(torch.arange(8.0), 10000.0 ** (-torch.arange(4.0) / 4))
            self.register_buffer("angles", angles)

        def forward(self, x: Tensor) -> Tensor:
            turns = torch.polar(torch.ones_like(self.angles), self.angles)[:, None]
            pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], 2, 4, 2))
            return torch.view_as_real(pairs * turns).flatten(-3).type_as(x)

    return _body(Rotary())


def complex_rotary_dp():
    return _body(
        lambda h: torch.view_as_real(torch.view_as_complex(h.view(-1, 4, 2))).flatten(1), (4, 8)
    )


def fourier_mixer():
    return _body(lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)


def fourier_filter():
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 16, 2))

        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.weight)
            return torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho")

    return _body(Filter())


# recurrence


class _Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def lstm():
    return _body(_Recurrent(nn.LSTM(16, 16, batch_first=True)))


def lstm_dropout():
    return _body(_Recurrent(nn.LSTM(16, 16, 2, batch_first=True, dropout=0.1)))


def lstm_bidirectional():
    return _body(_Recurrent(nn.LSTM(16, 8, batch_first=True, bidirectional=True)))


def lstm_time_first():
    return _body(_Recurrent(nn.LSTM(16, 16)), (8, 4, 16))


def gru():
    return _body(_Recurrent(nn.GRU(16, 16, batch_first=True)))


def gru_bidirectional():
    return _body(_Recurrent(nn.GRU(16, 8, 2, batch_first=True, bidirectional=True)))


def rnn_tanh():
    return _body(_Recurrent(nn.RNN(16, 16, batch_first=True)))


class _Cells(nn.Module):
    def __init__(self, cell: nn.Module, steps: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.cell, self.head, self.steps = cell, nn.Linear(16, 32), steps

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        state, outputs = None, []
        for step in range(self.steps):
            state = self.cell(self.embedding(ids[:, step]), state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        logits = self.head(torch.stack(outputs, 1))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _cells(cell: nn.Module, steps: int = 12):
    ids = torch.randint(0, 32, (SAMPLES, steps))
    return _Cells(cell, steps).train(), {"ids": ids, "labels": ids.clone()}


def lstm_cell():
    return _cells(nn.LSTMCell(16, 16))


def gru_cell():
    return _cells(nn.GRUCell(16, 16))


def gru_cell_long():
    return _cells(nn.GRUCell(16, 16), 48)


def rnn_cell():
    return _cells(nn.RNNCell(16, 16))


def linear_scan():
    """A state that decays and grows token by token."""

    class Scan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decay = nn.Parameter(torch.rand(16))

        def forward(self, x: Tensor) -> Tensor:
            state, states = torch.zeros_like(x[:, 0]), []
            for token in range(x.shape[1]):
                state = torch.sigmoid(self.decay) * state + x[:, token]
                states.append(state)
            return torch.stack(states, 1)

    return _body(Scan())


# embeddings, gates, windows, distances


class _Bag(nn.Module):
    def __init__(self, mode: str, offsets: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(32, 16, mode=mode)
        self.head = nn.Linear(16, 1)
        self.offsets = offsets

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        if self.offsets:
            starts = torch.arange(0, ids.numel(), ids.shape[1])
            rows = self.bag(ids.flatten(), starts)
        else:
            rows = self.bag(ids)
        return F.binary_cross_entropy_with_logits(self.head(rows)[:, 0], labels)


def _bag(mode: str, offsets: bool = False):
    batch = {"ids": torch.randint(0, 32, (SAMPLES, 6)), "labels": torch.rand(SAMPLES)}
    return _Bag(mode, offsets).train(), batch


def embedding_bag_mean():
    return _bag("mean")


def embedding_bag_sum():
    return _bag("sum")


def embedding_bag_max():
    return _bag("max")


def embedding_bag_offsets():
    return _bag("sum", True)


def gated_linear_unit():
    return _body(lambda x: F.glu(torch.cat([x, x * 2], -1)))


def unfold_col2im():
    def windows(x: Tensor) -> Tensor:
        image = x.view(-1, 1, 8, 16)
        return F.fold(F.unfold(image, 3, padding=1) * 2, (8, 16), 3, padding=1).view(x.shape)

    return _body(windows)


def tensor_unfold():
    return _body(lambda x: x.transpose(1, 2).unfold(-1, 4, 2).flatten(2).mean(-1))


def pairwise_distance():
    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes = nn.Embedding(6, 16)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.reshape(-1, 16)
            nearest = torch.cdist(flat, self.codes.weight).argmin(1)
            chosen = self.codes(nearest).view(x.shape)
            return x + (chosen - x).detach() + 0.1 * (chosen - x.detach())

    return _body(Codes())


def soft_distance():
    class Soft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codes = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(-torch.cdist(x, self.codes.expand(x.shape[0], 16, 16)), -1)

    return _body(Soft())


class _Picture(nn.Module):
    def __init__(self, middle: nn.Module, channels: int = 16, out: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.middle = middle
        self.last = nn.Conv2d(out, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x))).square().mean()


def _picture(middle, out: int = 16):
    module = middle if isinstance(middle, nn.Module) else Apply(middle)
    return _Picture(module, 16, out).train(), (torch.randn(SAMPLES, 3, 8, 8),)


def interpolate_nearest():
    return _picture(lambda x: F.interpolate(x, scale_factor=2.0))


def interpolate_bilinear():
    return _picture(lambda x: F.interpolate(x, size=(12, 12), mode="bilinear", align_corners=False))


def interpolate_bicubic():
    return _picture(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True))


def interpolate_linear():
    return _body(lambda x: F.interpolate(x, size=20, mode="linear"), out=20)


def interpolate_trilinear():
    return _picture(
        lambda x: F.interpolate(x[:, None], scale_factor=2, mode="trilinear").mean(1), 32
    )


def grid_sample():
    def sampled(x: Tensor) -> Tensor:
        theta = torch.eye(2, 3).expand(x.shape[0], 2, 3)
        return F.grid_sample(
            x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False
        )

    return _picture(sampled)


def pixel_shuffle():
    return _picture(nn.PixelShuffle(2), 4)


def adaptive_pools():
    def pooled(x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(x, 3) + F.adaptive_avg_pool2d(x, 3) + F.lp_pool2d(x, 2, 3, 2)

    return _picture(pooled)


def padding_modes():
    def padded(x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1), mode="reflect") + F.pad(x, (1, 1, 1, 1), mode="replicate")

    return _picture(padded)


def circular_convolution():
    return _picture(nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"))


# normalisation


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, 32)
        self.convolution = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(F.silu(self.norm(x)))


class _SmallUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(_Residual() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inside(x)
        for block in self.blocks:
            h = block(h)
        return h.square().mean()


def group_norm_residual():
    return _SmallUNet().train(), (torch.randn(SAMPLES, 3, 16, 16),)


def instance_norm():
    return _picture(nn.InstanceNorm2d(16, affine=True))


def local_response_norm():
    return _picture(nn.LocalResponseNorm(3))


class _NormAtTheEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(2))
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x)).square().mean()


def batch_norm_at_the_end():
    return _NormAtTheEnd().train(), (torch.randn(SAMPLES, 16),)


class _NormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.tower(a) * self.tower(b)).square().mean()


def batch_norm_twice():
    return _NormTwice().train(), (torch.randn(SAMPLES, 16), torch.randn(SAMPLES, 16))


class _ManyNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleDict(
            {f"branch_with_a_long_name_{i}": nn.BatchNorm1d(16) for i in range(20)}
        )
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = sum(stem(x) for stem in self.stems.values())
        for block in self.blocks:
            x = torch.relu(block(x))
        return x.square().mean()


def many_batch_norms():
    return _ManyNorms().train(), (torch.randn(SAMPLES, 16),)


def spectral_norm():
    return _body(nn.utils.spectral_norm(nn.Linear(16, 16)))


def parametrized_weight_norm():
    return _body(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))


def parametrized_spectral_norm():
    return _body(nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)))


# random operators


def noise_normal():
    return _body(lambda x: x + 0.1 * torch.randn_like(x))


def noise_uniform():
    return _body(lambda x: x + torch.rand(x.shape[0], 1, 1) - 0.5)


def noise_in_place():
    return _body(
        lambda x: x + torch.empty_like(x).normal_(0, 0.1) + torch.empty_like(x).uniform_(-1, 1)
    )


def noise_exponential():
    return _body(lambda x: x * torch.empty_like(x).exponential_())


def gumbel_softmax():
    return _body(lambda x: F.gumbel_softmax(x, tau=0.5, hard=True))


def bernoulli_mask():
    return _body(lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)))


def stochastic_depth():
    def dropped(x: Tensor) -> Tensor:
        keep = x.new_empty((x.shape[0], 1, 1)).bernoulli_(0.8)
        return x + x * keep.div_(0.8)

    return _body(dropped)


def label_dropout():
    def dropped(x: Tensor) -> Tensor:
        drop = torch.rand(x.shape[0], device=x.device) < 0.3
        return torch.where(drop[:, None, None], torch.zeros_like(x), x)

    return _body(dropped)


class _Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(16, 8)
        self.decoder = nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        sample = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
        return F.mse_loss(self.decoder(sample), x) + divergence


def variational_autoencoder():
    return _Autoencoder().train(), (torch.randn(SAMPLES, 16),)


class _Diffusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Embedding(100, 16)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
        self.register_buffer("alphas", torch.linspace(0.99, 0.01, 100))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.randint(0, 100, (x.shape[0],), device=x.device)
        noise = torch.randn_like(x)
        alpha = self.alphas[steps][:, None]
        noisy = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
        return F.mse_loss(self.net(noisy + self.time(steps)), noise)


def diffusion_loss():
    return _Diffusion().train(), (torch.randn(SAMPLES, 16),)


class _Masked(nn.Module):
    """A masked autoencoder: a random quarter of the tokens of each sample is encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 16), nn.Linear(16, 16)
        self.mask = nn.Parameter(torch.zeros(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        order = torch.argsort(torch.rand(samples, tokens, device=x.device), dim=1)
        restore = torch.argsort(order, dim=1)
        visible = order[:, : tokens // 4]
        seen = self.encoder(x.gather(1, visible.unsqueeze(-1).expand(-1, -1, width)))
        filled = torch.cat([seen, self.mask.expand(samples, tokens - tokens // 4, -1)], 1)
        whole = filled.gather(1, restore.unsqueeze(-1).expand(-1, -1, width))
        return F.mse_loss(self.decoder(whole), x)


def masked_autoencoder():
    return _Masked().train(), (torch.randn(SAMPLES, 8, 16),)


def random_permutation():
    return _body(lambda x: x[:, torch.randperm(x.shape[1], device=x.device)])


def sampled_categories():
    def sampled(x: Tensor) -> Tensor:
        flat = torch.softmax(x, -1).reshape(-1, 16)
        chosen = torch.multinomial(flat.detach(), 1).view(*x.shape[:2], 1)
        return x * F.one_hot(chosen[..., 0], 16)

    return _body(sampled)


def other_dropouts():
    return _body(nn.Sequential(nn.Dropout1d(0.2), nn.AlphaDropout(0.1), nn.RReLU()))


def layer_drop():
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if self.training and torch.rand([]) < 0.0:
                    continue
                x = x + layer(x)
            return x

    return _body(Layers())


# values that a training step does not need


def guard_finite():
    def guarded(x: Tensor) -> Tensor:
        if torch.isinf(x).any() or torch.isnan(x).any():
            x = torch.clamp(x, min=-1e4, max=1e4)
        return x

    return _body(guarded)


def guard_finite_all():
    def guarded(x: Tensor) -> Tensor:
        if not torch.isfinite(x).all():
            x = torch.nan_to_num(x)
        return x

    return _body(guarded)


def guard_error():
    def guarded(x: Tensor) -> Tensor:
        if x.abs().max() > 1e6:
            raise ValueError("too large")
        return x

    return _body(guarded)


class _LabelCheck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 32)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        if labels is not None and labels.max() >= 32:
            raise ValueError(f"labels must be below 32, not {labels.max()}")
        logits = self.head(self.embedding(ids))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _tokens(module: nn.Module, vocabulary: int = 32):
    ids = torch.randint(0, vocabulary, (SAMPLES, 8))
    return module.train(), {"ids": ids, "labels": ids.clone()}


def label_check():
    return _tokens(_LabelCheck())


class _MaskedMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 32)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.head(self.embedding(ids)).flatten(0, 1)
        losses = F.cross_entropy(logits, labels.flatten(), reduction="none")
        return losses[labels.flatten() > 4].mean()


def masked_mean():
    return _tokens(_MaskedMean())


class _MaskedRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 32)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.head(self.embedding(ids))
        active = labels.flatten() != 3
        return F.cross_entropy(logits.view(-1, 32)[active], labels.flatten()[active])


def masked_rows():
    return _tokens(_MaskedRows())


class _Grid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 16)
        self.rows, self.columns = nn.Embedding(8, 16), nn.Embedding(8, 16)

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        positions = []
        for height, width in grid.tolist():
            rows = torch.arange(height)[:, None].expand(height, width).flatten()
            columns = torch.arange(width)[None].expand(height, width).flatten()
            positions.append(self.rows(rows) + self.columns(columns))
        return (self.project(patches) + torch.cat(positions)).square().mean()


def grid_lengths():
    """The sizes of two pictures as integers: 2 x 4 and 4 x 2 patches."""
    return _Grid().train(), {"patches": torch.randn(16, 16), "grid": torch.tensor([[2, 4], [4, 2]])}


class _Experts(nn.Module):
    """Experts that take the tokens sent to them, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gate = nn.Embedding(32, 16), nn.Linear(16, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)) for _ in range(4)
        )
        self.head = nn.Linear(16, 32)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids).flatten(0, 1)
        weights, chosen = torch.topk(self.gate(x).softmax(-1), 2)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            result[token] += weights[token, slot, None] * expert(x[token])
        return F.cross_entropy(self.head(result), labels.flatten())


def experts_in_a_loop():
    return _tokens(_Experts())


def experts_index_add():
    class Added(_Experts):
        def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
            x = self.embedding(ids).flatten(0, 1)
            weights, chosen = torch.topk(self.gate(x).softmax(-1), 2)
            result = torch.zeros_like(x)
            masks = F.one_hot(chosen, 4).permute(2, 1, 0)
            for number, expert in enumerate(self.experts):
                slot, token = torch.where(masks[number])
                part = expert(x[token]) * weights[token, slot, None]
                result.index_add_(0, token, part)
            return F.cross_entropy(self.head(result), labels.flatten())

    return _tokens(Added())


# what factories leave behind


def plain_table():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.arange(16.0).sin()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table

    return _body(Table())


def autocast_inside():
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                h = self.linear(x)
            with torch.autocast("cpu", enabled=False):
                return self.linear(h.float() + x)

    return _body(Cast())


# sorts, cumulative and indexed operators, linear algebra


def sorted_tokens():
    return _body(lambda x: x.sort(-1).values + x.cumsum(1) + x.cummax(1).values.flip(1))


def rolled():
    return _body(lambda x: torch.roll(x, (1, 2), (1, 2)) + x.diff(dim=1, prepend=x[:, :1]))


def scattered():
    class Graph(nn.Module):
        """A message passing step over edges between the nodes of one graph."""

        def __init__(self) -> None:
            super().__init__()
            self.message, self.update = nn.Linear(16, 16), nn.Linear(32, 16)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            source, target = edges
            messages = torch.relu(self.message(nodes))[source]
            gathered = torch.zeros_like(nodes).index_add(0, target, messages)
            pooled = torch.zeros_like(nodes).scatter_reduce(
                0, target[:, None].expand(-1, 16), messages, "amax", include_self=False
            )
            return self.update(torch.cat([nodes, gathered + pooled], -1)).square().mean()

    edges = torch.randint(0, 12, (2, 20))
    return Graph().train(), (torch.randn(12, 16), edges)


def linear_algebra():
    def solved(x: Tensor) -> Tensor:
        square = x @ x.transpose(1, 2) + 8 * torch.eye(8)
        return torch.linalg.solve(square, x) + torch.linalg.cholesky(square) @ x

    return _body(solved)


def einsum_mixer():
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Parameter(torch.randn(8, 8) / 8)
            self.width = nn.Parameter(torch.randn(16, 16) / 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bnd,nm,de->bme", x, self.tokens, self.width)

    return _body(Mixer())


def bilinear_layers():
    return _body(
        Apply(lambda x: F.pairwise_distance(x, x.flip(1), keepdim=True) * F.normalize(x, dim=-1))
    )


class _TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.item = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        scores = self.query(query) @ self.item(item).t()
        return F.cross_entropy(scores, torch.arange(query.shape[0]))


def two_tower():
    return _TwoTower().train(), (torch.randn(SAMPLES, 16), torch.randn(SAMPLES, 16))


def contrastive():
    """SimCLR: two views of every sample, all others are negatives."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            z = F.normalize(self.net(torch.cat([one, other])), dim=-1)
            count = one.shape[0]
            scores = (z @ z.t()) / 0.5
            scores = scores.masked_fill(torch.eye(2 * count, dtype=torch.bool), -1e9)
            partner = torch.cat([torch.arange(count) + count, torch.arange(count)])
            return F.cross_entropy(scores, partner)

    return Views().train(), (torch.randn(SAMPLES, 16), torch.randn(SAMPLES, 16))


# losses


def chunked_loss():
    """The head and the loss take the tokens in four parts."""

    class Chunked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 12)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            rows, of_rows = self.body(x).flatten(0, 1), labels.flatten()
            parts = zip(rows.chunk(4), of_rows.chunk(4), strict=True)
            return torch.stack([F.cross_entropy(self.head(r), t) for r, t in parts]).mean()

    return Chunked().train(), (torch.randn(SAMPLES, 6, 16), torch.randint(0, 12, (SAMPLES, 6)))


def loss_adaptive_softmax():
    class Adaptive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.loss = (
                nn.Linear(16, 16),
                nn.AdaptiveLogSoftmaxWithLoss(16, 30, [6, 14], 2.0),
            )

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.loss(self.body(x).tanh(), labels).loss

    return Adaptive().train(), (torch.randn(SAMPLES, 16), torch.randint(0, 30, (SAMPLES,)))


def _loss(loss: nn.Module, target: Tensor):
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.loss = nn.Linear(16, 6), loss

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.loss(self.head(x), y)

    return Loss().train(), (torch.randn(SAMPLES, 16), target)


def loss_label_smoothing():
    return _loss(nn.CrossEntropyLoss(label_smoothing=0.1), torch.randint(0, 6, (SAMPLES,)))


def loss_weighted_classes():
    return _loss(nn.CrossEntropyLoss(weight=torch.rand(6)), torch.randint(0, 6, (SAMPLES,)))


def loss_soft_targets():
    return _loss(nn.CrossEntropyLoss(), torch.rand(SAMPLES, 6).softmax(-1))


def loss_divergence():
    return _loss(nn.KLDivLoss(reduction="batchmean"), torch.rand(SAMPLES, 6).softmax(-1))


def loss_multi_margin():
    return _loss(nn.MultiMarginLoss(), torch.randint(0, 6, (SAMPLES,)))


def loss_connectionist():
    """Connectionist temporal classification of two labels in eight frames."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 6)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            scores = self.head(x).log_softmax(-1).transpose(0, 1)
            frames = torch.full((x.shape[0],), 8, dtype=torch.long)
            labels = torch.full((x.shape[0],), 2, dtype=torch.long)
            return F.ctc_loss(scores, y, frames, labels)

    return Frames().train(), (torch.randn(SAMPLES, 8, 16), torch.randint(1, 6, (SAMPLES, 2)))


def loss_cosine():
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(16, 8)

        def forward(self, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
            pair = self.net(a), self.net(b)
            triplet = F.triplet_margin_loss(*pair, self.net(a + b))
            return F.cosine_embedding_loss(*pair, y) + triplet

    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    return Cosine().train(), (torch.randn(SAMPLES, 16), torch.randn(SAMPLES, 16), signs)


# attention


def multihead_attention():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    return _body(Attention())


def transformer_layer():
    return _body(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))


def transformer_decoder():
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
            self.decoder = nn.TransformerDecoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(x, x.flip(1))

    return _body(Decoder())


def flex_attention():
    from torch.nn.attention.flex_attention import flex_attention as flexible

    class Flexible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 48)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))

            def distance(score, batch, head, query, key):
                return torch.where(query >= key, score - 0.1 * (query - key), -float("inf"))

            return flexible(q, k, v, score_mod=distance).transpose(1, 2).flatten(2)

    return _body(Flexible())


def attention_sinks():
    class Sinks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.sinks = nn.Linear(16, 48), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            scores = q @ k.transpose(-1, -2) / 2
            scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -float("inf"))
            sinks = self.sinks.view(1, 4, 1, 1).expand(x.shape[0], 4, 8, 1)
            shares = torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]
            return (shares @ v).transpose(1, 2).flatten(2)

    return _body(Sinks())
