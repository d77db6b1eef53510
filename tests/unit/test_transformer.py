"""The causal transformer: the published one to the last number, causal, and step by step what it is as a whole."""

import math

import pytest
import stepwise
import torch
from torch import nn

from wmrl.config import resolved
from wmrl.dynamics import DYNAMICS
from wmrl.dynamics.trade import TraDE
from wmrl.dynamics.transformer_de import TransformerDE
from wmrl.errors import ContractError
from wmrl.nn.autoregressive import AutoregressiveHead
from wmrl.nn.dropout import Drop
from wmrl.nn.transformer import CausalTransformer, Sizes
from wmrl.spec import Actions, Batch, Space, tree_map

L, D = 6, 8
each = pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "recurrent"])


def trunk(positions: str = "sinusoidal", *, dropout: float = 0.0, context: int = L) -> CausalTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = Sizes(width=D, blocks=2, heads=2, feedforward=12)
        made = CausalTransformer(sizes, context=context, dropout=dropout, positions=positions)
    return made.eval()


def tokens(*lead: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*lead, D, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec_model(kind, **more) -> nn.Module:
    return kind(Space((32,)), Actions(3, False), **more)


@pytest.mark.parametrize(("kind", "count"), [(TransformerDE, 506_151), (TraDE, 512_487)])
@pytest.mark.parametrize("features", ["zh", "published"])
def test_it_has_as_many_parameters_as_the_published_one(kind, count, features):
    assert sum(p.numel() for p in spec_model(kind, features=features).parameters()) == count


def test_its_blocks_are_those_of_torch_which_the_published_one_uses():
    ours = trunk()
    theirs = nn.TransformerEncoderLayer(D, 2, dim_feedforward=12, dropout=0.0, batch_first=True).eval()
    x = tokens(3, L) + published_table(L, D)
    for block in ours.blocks:
        theirs.load_state_dict(published_weights(block))
        x = theirs(x, src_mask=nn.Transformer.generate_square_subsequent_mask(L), is_causal=True)
    torch.testing.assert_close(ours(tokens(3, L)), x.detach(), atol=1e-5, rtol=1e-5)


def test_the_defaults_are_the_published_numbers():
    published = {"width": 32, "blocks": 3, "heads": 8, "feedforward": 2048, "dropout": 0.1, "hidden": 256}
    published |= {"context": 32, "mixtures": 5, "mixture": "joint", "features": "zh", "termination_weight": 1.0}
    for kind, own in {"transformer-de": {"positions": "sinusoidal"}, "trade": {"density": "mixture"}}.items():
        table = resolved(DYNAMICS, {"kind": kind}, "dynamics")
        found = {key: value for key, value in table.items() if not key.startswith("density_")}
        assert found == {"kind": kind, **published, **own}


@pytest.mark.parametrize("kind", [TransformerDE, TraDE])
def test_what_is_asked_for_reaches_the_parts(kind):
    model = spec_model(kind, dropout=0.3, heads=4, mixture="per_dimension", termination_weight=3.0)
    assert (model.trunk.dropout, model.trunk.heads, model.next.joint) == (0.3, 4, False)
    z, batch = tokens(2, 5).repeat(1, 1, 4), some_batch()
    ends = [spec_model(kind, dropout=0.0, termination_weight=w) for w in (1.0, 3.0)]
    ends[1].load_state_dict(ends[0].state_dict())
    light, heavy = (float(model.loss(z, batch)[1]["termination"]) for model in ends)
    assert heavy > light


def test_asleep_and_awake_speak_of_one_output():
    model, (z, action) = spec_model(TransformerDE).eval(), (tokens(2, 4).flatten(1), torch.rand(2, 3))
    step = model.imagine(model.start(z), action, rng=seeded(0))
    reward, end = model.outcome(model.hidden(step.state.h))
    assert step.reward.equal(reward) and step.cont.equal(torch.sigmoid(-end))
    assert step.state.h.equal(model.observe(model.start(z), action, z).h)


def test_the_density_is_the_one_asked_for():
    model = spec_model(TraDE, density="autoregressive", density_width=8, density_blocks=3, density_heads=2)
    assert isinstance(model.next, AutoregressiveHead)
    assert (model.next.trunk.width, len(model.next.trunk.blocks), model.next.trunk.heads) == (8, 3, 2)


def some_batch() -> Batch:
    ends = torch.zeros(2, 4)
    ends[0, 3] = 1
    return Batch(None, tokens(2, 4, seed=5)[..., :3], tokens(2, 4, seed=6)[..., 0], ends, torch.ones(2, 4))


@pytest.mark.parametrize("kind", [TransformerDE, TraDE])
def test_its_loss_is_the_published_one(kind):
    """Token, positions, blocks, linear layer, heads and weights of the loss, written out with torch's own parts."""
    model, z, batch = spec_model(kind, width=8, heads=2, blocks=1, feedforward=12).eval(), tokens(2, 5), some_batch()
    z = z.repeat(1, 1, 4)
    x = torch.relu(model.embed(torch.cat([batch.action, z[:, :-1]], -1)))
    x = model.trunk.gru(x)[0] if kind is TraDE else x + published_table(4, 8)
    theirs = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.0, batch_first=True).eval()
    theirs.load_state_dict(published_weights(model.trunk.blocks[0]))
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    wide = model.hidden(theirs(x, src_mask=mask, is_causal=True))
    density, (reward, end) = model.next(wide), model.outcome(wide)
    nll = -density.log_prob(z[:, 1:]).mean()
    wrong = nn.functional.binary_cross_entropy_with_logits(end, batch.terminated)
    total = (nll + wrong + (reward - batch.reward).square().mean()) / 34
    torch.testing.assert_close(model.loss(z, batch)[0], total, atol=1e-5, rtol=1e-5)


def published_weights(block: nn.Module) -> dict[str, torch.Tensor]:
    names = {"qkv": "self_attn.in_proj_", "out": "self_attn.out_proj.", "up": "linear1.", "down": "linear2."}
    names |= {"norm1": "norm1.", "norm2": "norm2."}
    own = block.state_dict()
    return {f"{there}{p}": own[f"{n}.{p}"] for n, there in names.items() for p in ("weight", "bias")}


def test_it_begins_with_weights_drawn_as_torch_draws_them():
    ours = trunk().blocks[0].state_dict()
    bound = {"qkv.weight": math.sqrt(6 / (4 * D)), "out.weight": 1 / math.sqrt(D)}  # Glorot, and a linear layer's
    for name, most in bound.items():
        assert 0.9 * most < ours[name].abs().max() <= most
    assert not ours["qkv.bias"].any() and not ours["out.bias"].any()


def test_dropout_acts_where_the_published_one_has_it():
    seen = []

    class Spy(Drop):
        def __call__(self, x):
            seen.append(tuple(x.shape))
            return x

    spy = Spy(0.0)
    spy.p = 1e-9
    trunk()._window(tokens(3, L), spy)
    attention, inside, branch = (3, 2, L, L), (3, L, 12), (3, L, D)
    assert seen == [branch, *2 * [attention, branch, inside, branch]]  # the first: tokens with their positions


def test_rotary_positions_tell_distances_and_no_places():
    model = trunk("rotary", context=64)
    q, k = tokens(1, 1, seed=3), tokens(1, 1, seed=4)

    def score(i: int, j: int) -> torch.Tensor:
        return (model._turned(q, torch.tensor([i])) * model._turned(k, torch.tensor([j]))).sum()

    torch.testing.assert_close(score(9, 4), score(50, 45), atol=1e-4, rtol=1e-4)
    assert (score(9, 4) - score(9, 7)).abs() > 1e-3
    torch.testing.assert_close(model._turned(q, torch.tensor([37])).norm(), q.norm())


def test_a_controller_sees_the_state_normalised():
    model = spec_model(TransformerDE).eval()
    state = model.start(torch.randn(4, 32, generator=seeded(0)))
    seen = model.features(state._replace(h=7 * torch.randn(4, 32, generator=seeded(1)) + 3))[:, 32:]
    torch.testing.assert_close(seen.mean(-1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.var(-1, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


def published_table(length: int, width: int) -> torch.Tensor:
    """Vaswani et al. (2017), section 3.5, number by number."""
    table = torch.zeros(length, width)
    for t in range(length):
        for i in range(0, width, 2):
            table[t, i], table[t, i + 1] = math.sin(t / 10_000 ** (i / width)), math.cos(t / 10_000 ** (i / width))
    return table


@each
def test_changing_the_future_changes_nothing_before_it(positions):
    model, x = trunk(positions), tokens(2, L)
    changed = x.clone()
    changed[:, 4:] += 10
    before, after = model(x), model(changed)
    assert before[:, :4].equal(after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).any(-1).all()


@each
@pytest.mark.parametrize("context", [2, 5, L])
def test_step_by_step_it_is_the_whole_pass_over_the_tokens_kept(positions, context):
    """Past the end of the window, too: then the newest half is a window of its own."""
    model, x = trunk(positions, context=context), tokens(3, 4 * L)
    memory, kept = model.empty(x), []
    for t in range(4 * L):
        kept = [*(kept if len(kept) < context else kept[-(context // 2) :]), x[:, t]]
        y, memory = model.step(memory, x[:, t])
        torch.testing.assert_close(y, model(torch.stack(kept, 1))[:, -1], atol=1e-5, rtol=1e-5)
        assert memory.length.tolist() == [len(kept)] * 3


def test_a_frozen_window_has_gradients_on_a_gpu_too(monkeypatch):
    model, asked = trunk("recurrent"), []
    forward = model.gru.forward
    monkeypatch.setattr(model.gru, "forward", lambda x: (asked.append(torch.backends.cudnn.enabled), forward(x))[1])
    x = tokens(2, L).requires_grad_()
    model(x)
    with torch.no_grad():
        model(x)
    model.train()(x)
    assert asked == [False, True, True], "cuDNN's GRU has none outside training"


@each
def test_rows_of_other_lengths_do_not_disturb_each_other(positions):
    """Rows begin anew at other times, and fill their windows at other times."""
    together, alone = stepwise.together_and_alone(trunk(positions), tokens(4, 5 * L))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@each
def test_a_step_leaves_its_memory_as_it_was_unless_it_owns_it(positions):
    model, x = trunk(positions), tokens(2, L)
    memory = model.step(model.empty(x), x[:, 0])[1]
    copy = tree_map(torch.clone, tuple(memory))
    free = model.step(memory, x[:, 1])
    tree_map(lambda a, b: torch.testing.assert_close(a, b, atol=0, rtol=0) or a, tuple(memory), copy)
    kept = model.step(memory, x[:, 1], own=True)[1]
    assert kept.tokens is not memory.tokens, "a gradient may need it"
    with torch.no_grad():
        owned = model.step(memory, x[:, 1], own=True)
    assert owned[1].tokens is memory.tokens and owned[1].cache is memory.cache, "it was copied"
    assert free[0].equal(owned[0]) and all(a.equal(b) for a, b in zip(free[1].cache, owned[1].cache, strict=True))
    assert free[1].tokens.equal(owned[1].tokens) and not owned[1].tokens.equal(copy[0])


def test_the_memory_does_not_grow_with_the_episode():
    model, x = trunk(), tokens(2, 1)[:, 0]
    memory = model.empty(x)
    shapes = tree_map(lambda t: torch.tensor(t.shape), tuple(memory))
    for _ in range(5 * L):
        _, memory = model.step(memory, x)
        tree_map(lambda t, shape: t if list(t.shape) == shape.tolist() else pytest.fail("grew"), tuple(memory), shapes)
        assert int(memory.length.max()) <= L


def test_dropout_acts_in_training_only_and_draws_from_its_generator():
    model, x = trunk(dropout=0.5).train(), tokens(2, L)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    a, b, c = model(x, seeded(1)), model(x, seeded(1)), model(x, seeded(2))
    assert a.equal(b) and not a.equal(c)
    assert before.equal(torch.random.get_rng_state())
    awake = model.step(model.empty(x), x[:, 0])[0]
    torch.testing.assert_close(awake, trunk(dropout=0.5)(x[:, :1])[:, 0])  # a step never drops anything
    assert model.eval()(x, seeded(1)).equal(model(x))


def test_attention_with_dropout_is_attention():
    """The training form, with nothing to drop, against the fused one."""
    model, x = trunk(), tokens(2, L)
    drop = Drop(0.0)
    drop.p = 1e-9  # takes the other way and drops nothing
    torch.testing.assert_close(model._window(x, drop)[0], model(x), atol=1e-5, rtol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = torch.ones(1001, 1003)
    y = Drop(0.1, seeded(0))(x)
    assert abs((y == 0).float().mean() - 0.1) < 1e-3 and abs(y.mean() - 1) < 1e-3
    assert y.unique().numel() == 2
    rows = (y == 0).float().mean(0)
    assert rows.std() < 1.2 * math.sqrt(0.09 / 1001), "the draws are not independent of their place"


def test_what_a_controller_sees_has_full_rank_and_the_published_form_has_not():
    def rank(features: str) -> int:
        torch.manual_seed(0)
        model = spec_model(TransformerDE, features=features).eval()
        state = model.start(torch.randn(512, 32, generator=seeded(0)))
        with torch.no_grad():
            state = model.observe(state, torch.randn(512, 3, generator=seeded(1)), torch.zeros(512, 32))
            seen = model.features(state)[:, 32:]
        return int(torch.linalg.matrix_rank(seen - seen.mean(0), rtol=1e-4)), seen.shape[1]

    assert rank("published") == (31, 256)  # one of 32 is lost in the last layer norm
    assert rank("zh") == (31, 32)


def test_before_its_first_step_there_is_nothing_to_see_but_the_latent():
    for features in ("zh", "published"):
        model = spec_model(TransformerDE, features=features).eval()
        assert not model.features(model.start(torch.ones(2, 32)))[:, 32:].any()


def test_a_window_longer_than_the_context_is_refused():
    model = spec_model(TransformerDE, context=4)
    row = torch.zeros(1, 5)
    with pytest.raises(ContractError, match=r"at most 4 steps.*given 5"):
        model.loss(torch.zeros(1, 6, 32), Batch(None, torch.zeros(1, 5, 3), row, row, row + 1))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"heads": 5}, "heads must divide the width"),
        ({"positions": "rotary", "width": 24, "heads": 8}, "even width of a head"),
        ({"context": 1}, "context"),
        ({"dropout": 1.0}, "dropout"),
        ({"blocks": 0}, "blocks"),
        ({"termination_weight": 0.0}, "termination_weight"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        spec_model(TransformerDE, **more)


@pytest.mark.parametrize("density", ["mixture", "autoregressive"])
@pytest.mark.parametrize("key", ["width", "blocks", "heads", "feedforward"])
def test_sizes_of_a_density_that_make_no_sense_are_refused(density, key):
    with pytest.raises(ValueError, match=f"density_{key} must be at least 1, got 0"):
        spec_model(TraDE, density=density, **{f"density_{key}": 0})
    with pytest.raises(ValueError, match="density_heads must divide density_width"):
        spec_model(TraDE, density=density, density_heads=5)


def test_only_vectors_of_floats_are_latents():
    for space in (Space((4, 4)), Space((4,), vocab=8)):
        with pytest.raises(ContractError, match="vector of floats"):
            TransformerDE(space, Actions(3, False))
