"""The reference is the user's module: hooks, loss, dropout, casts and a checkpointed forward."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint

from plait.ir.capture import Source, trace
from plait.ir.capture.batch import leaves
from plait.ir.capture.execute import execute
from plait.ir.lowering.cast import cast_model
from plait.runtime.verification.bare_module import bare_source
from plait.runtime.verification.compare import errors
from plait.runtime.verification.reference import interpreted, reference, with_rounded_gradients
from plait.runtime.verification.training import OPTIMIZERS, Training, training_of
from plait.runtime.verification.verify import TOLERANCE

TRAINING = Training(*OPTIMIZERS["adamw"], 2, 7)


class Block(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.norm, self.linear, self.rate = nn.LayerNorm(8), nn.Linear(8, 24), rate

    def forward(self, x):
        q, k, v = self.linear(self.norm(x)).view(4, 6, 2, 12).transpose(1, 2).chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.rate)
        mixed = functional.dropout(mixed.transpose(1, 2).reshape(4, 6, 8), self.rate)
        if not self.rate:
            return x + mixed
        keep = 1 - self.rate  # stochastic depth, one number a sample
        return x + mixed * torch.floor(keep + torch.rand(4, 1, 1, dtype=x.dtype)) / keep


class Net(nn.Module):
    def __init__(self, rate: float = 0.25) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(rate) for _ in range(2))
        self.head, self.drop = nn.Linear(8, 3), nn.Dropout(0.5)
        self.checkpointed = False

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return self.drop(self.head(x))


def source(change=lambda model: None, rate: float = 0.25) -> Source:
    torch.manual_seed(0)
    model = Net(rate)
    batch = (torch.randn(4, 6, 8, dtype=torch.float64),)
    change(model)

    def loss(out, batch):
        return out.square().mean()

    return Source(model.double().train(), batch, loss, "net", "net")


def traced(change=lambda model: None):
    one = source(change)
    return cast_model(trace(one.model, one.batch, one.loss_fn), "float64")


@pytest.mark.parametrize(("optimizer", "decides"), [("Adafactor", True), ("adamw", False)])
def test_rounding_decides_over_a_bias_that_batch_norm_takes_away(optimizer, decides) -> None:
    def build() -> Source:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
        batch = (torch.randn(8, 4, dtype=torch.float64),)
        return Source(net, batch, lambda out, _: out.square().mean(), "net", "net")

    model = trace(build().model, build().batch, build().loss_fn)
    training = training_of(optimizer, 2, 0)
    exact, rounded = (
        reference(build, model, one) for one in (training, with_rounded_gradients(training))
    )
    off = errors(rounded.state, exact.state, 1.0)
    assert (off["0.bias"] > TOLERANCE) == decides
    assert off["0.weight"] < TOLERANCE


class Packed(nn.Module):
    """Two recurrent layers on sequences of unequal lengths: their mask is that of the rows there are."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.GRU(8, 8, 2, batch_first=True, dropout=0.25)

    def forward(self, x):
        lengths = torch.tensor([2, 5, 1, 3])
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.network(packed)[1]


def packed_source() -> Source:
    torch.manual_seed(0)
    batch = (torch.randn(4, 6, 8, dtype=torch.float64),)
    return Source(Packed().double(), batch, lambda out, _: out.square().mean(), "net", "net")


@pytest.mark.parametrize("build", [source, packed_source])
def test_masks_are_replayed_in_the_module_as_the_interpreter_draws_them(build) -> None:
    one = build()
    model = trace(one.model, one.batch, one.loss_fn)
    eager = reference(build, model, TRAINING)
    assert (eager.notes, eager.faults, eager.unmatched_draws) == ((), (), ())
    states = dict(one.model.named_parameters())
    batch = [tensor for _, tensor in leaves(one.batch)]
    loss, gradients, _ = execute(model, states, batch, seed=7, step=0)
    assert eager.losses[0] == pytest.approx(float(loss), rel=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(eager.gradients[0][name], gradient, rtol=1e-10, atol=1e-13)
    assert eager.losses[0] != eager.losses[1]  # other masks in the next step


def test_a_checkpointed_forward_draws_its_masks_again() -> None:
    def checkpointed(model):
        model.checkpointed = True

    model = traced()
    plain, again = (
        reference(source, model, TRAINING),
        reference(lambda: source(checkpointed), model, TRAINING),
    )
    assert again.faults == again.unmatched_draws == ()
    assert again.losses == pytest.approx(plain.losses, rel=1e-12)
    for name, gradient in plain.gradients[0].items():
        torch.testing.assert_close(again.gradients[0][name], gradient)


def test_a_mask_that_the_trace_lost_is_a_fault() -> None:
    def without(model):
        model.drop.p = 0.0

    (fault,) = reference(source, traced(without), TRAINING).unmatched_draws
    assert "draws a mask of [4, 6, 3] at rate 0.5 in drop" in fault
    (fault,) = reference(lambda: source(without), traced(), TRAINING).unmatched_draws
    assert "the program draws a mask of [4, 6, 3]" in fault


def test_hooks_of_the_module_are_part_of_the_reference() -> None:
    def hooked(model):
        model.head.weight.register_hook(lambda gradient: gradient * 3)
        model.layers[0].register_forward_hook(lambda module, args, out: out * 2)

    model = traced()
    plain, with_hooks = (
        reference(source, model, TRAINING),
        reference(lambda: source(hooked), model, TRAINING),
    )
    assert plain.losses[0] != with_hooks.losses[0]

    def weight_only(model):
        model.head.weight.register_hook(lambda gradient: gradient * 3)

    hook = reference(lambda: source(weight_only), model, TRAINING)
    assert hook.losses[0] == plain.losses[0]
    weights = (one.gradients[0]["head.weight"] for one in (hook, plain))
    torch.testing.assert_close(next(weights), 3 * next(weights))


def test_hooks_survive_the_change_to_float64(tmp_path) -> None:
    from plait.ir.capture import materialize

    (tmp_path / "hooked.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def times_7(p):\n"
        "    p.grad.mul_(7)\n\n\n"
        "def make():\n"
        "    model = nn.Linear(3, 1)\n"
        "    model.weight.register_hook(lambda gradient: gradient * 5)\n"
        "    model.bias.register_post_accumulate_grad_hook(times_7)\n"
        "    return model, torch.ones(2, 3), lambda out, batch: out.sum()\n"
    )
    built = materialize(f"{tmp_path / 'hooked.py'}:make", dtype="float64")
    built.loss_fn(built.model(built.batch), built.batch).backward()
    assert built.model.weight.grad.tolist() == [[10.0, 10.0, 10.0]]
    assert built.model.bias.grad.tolist() == [14.0]


def test_attention_that_drops_nothing_draws_nothing() -> None:
    one = source(rate=0.0)
    model = cast_model(trace(one.model, one.batch, one.loss_fn), "float64")
    result = reference(lambda: source(rate=0.0), model, TRAINING)
    assert (result.notes, result.faults) == ((), ())


class Casting(nn.Module):
    def __init__(self, cast) -> None:
        super().__init__()
        self.linear, self.cast = nn.Linear(4, 4), cast

    def forward(self, x):
        return self.cast(self.linear(x)).double().square().mean()


def casting(cast) -> Source:
    torch.manual_seed(0)
    return Source(Casting(cast).double(), torch.randn(6, 4, dtype=torch.float64), None, "c", "c")


def reference_of(cast):
    one = casting(cast)
    return reference(lambda: casting(cast), trace(one.model, one.batch), TRAINING)


def test_casts_are_retained_in_one_step_and_lifted_in_the_others() -> None:
    rounding = reference_of(lambda x: torch.softmax(x.float(), -1))
    assert rounding.faults == ()
    assert "float32" in rounding.notes[0]
    overflowing = reference_of(lambda x: (x * 1e5).half() / 1e5)
    assert "more than rounding" in overflowing.faults[0]


def test_what_cannot_be_replayed_is_said() -> None:
    noisy = Casting(lambda x: x + torch.randn_like(x)).double()
    noisy_source = Source(noisy, torch.randn(6, 4, dtype=torch.float64), None, "n", "n")
    plain = Casting(lambda x: x).double()
    model = trace(plain, noisy_source.batch)
    (note,) = reference(lambda: noisy_source, model, TRAINING).notes
    assert "aten.randn_like" in note
    assert "what the trace lost is not checked" in note


def test_a_model_file_is_interpreted_and_says_so() -> None:
    model = traced()
    result = interpreted(lambda: bare_source(model, "model.json", 3), model, TRAINING)
    assert "a model file has no module" in result.notes[0]
    assert all(loss > 0 for loss in result.losses)
    bare = bare_source(model, "model.json", 3)
    assert bare.model.state_dict().keys() == source().model.state_dict().keys()
