"""The causal transformer: the published one to the last number, causal, and step by step what it is as a whole."""

import math

import pytest
import torch
from torch import nn

from wmrl.dynamics.trade import TraDE
from wmrl.dynamics.transformer_de import TransformerDE
from wmrl.errors import ContractError
from wmrl.nn.dropout import Drop
from wmrl.nn.transformer import CausalTransformer, Memory
from wmrl.spec import Actions, Batch, Space, tree_map, where

L, D = 6, 8
each = pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "recurrent"])


def trunk(positions: str = "sinusoidal", *, dropout: float = 0.0, context: int = L) -> CausalTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = CausalTransformer(
            D, blocks=2, heads=2, feedforward=12, context=context, dropout=dropout, positions=positions
        )
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
    names = {"qkv": "self_attn.in_proj_", "out": "self_attn.out_proj.", "up": "linear1.", "down": "linear2."}
    names |= {"norm1": "norm1.", "norm2": "norm2."}
    x = tokens(3, L) + published_table(L, D)
    for block in ours.blocks:
        own = block.state_dict()
        theirs.load_state_dict(
            {f"{there}{p}": own[f"{n}.{p}"] for n, there in names.items() for p in ("weight", "bias")}
        )
        x = theirs(x, src_mask=nn.Transformer.generate_square_subsequent_mask(L), is_causal=True)
    torch.testing.assert_close(ours(tokens(3, L)), x.detach(), atol=1e-5, rtol=1e-5)


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


@each
def test_rows_of_other_lengths_do_not_disturb_each_other(positions):
    """Rows begin anew at other times, and fill their windows at other times."""
    model, x, rng = trunk(positions), tokens(4, 5 * L), seeded(3)
    begins = torch.rand(5 * L, 4, generator=rng) < 0.15
    together = model.empty(x)
    alone = [model.empty(x[:1]) for _ in range(4)]
    for t in range(5 * L):
        together = Memory(*where(begins[t], tuple(model.empty(x)), tuple(together)))
        y, together = model.step(together, x[:, t])
        for row in range(4):
            memory = model.empty(x[:1]) if begins[t, row] else alone[row]
            single, alone[row] = model.step(memory, x[row : row + 1, t])
            torch.testing.assert_close(y[row], single[0], atol=1e-5, rtol=1e-5)


@each
def test_a_step_leaves_its_memory_as_it_was_unless_it_owns_it(positions):
    model, x = trunk(positions), tokens(2, L)
    memory = model.step(model.empty(x), x[:, 0])[1]
    copy = tree_map(torch.clone, tuple(memory))
    free = model.step(memory, x[:, 1])
    tree_map(lambda a, b: torch.testing.assert_close(a, b, atol=0, rtol=0) or a, tuple(memory), copy)
    owned = model.step(memory, x[:, 1], own=True)
    assert free[0].equal(owned[0]) and free[1].cache.equal(owned[1].cache)


def test_the_memory_does_not_grow_with_the_episode():
    model, x = trunk(), tokens(2, 1)[:, 0]
    memory = model.empty(x)
    shapes = [t.shape for t in memory]
    for _ in range(5 * L):
        _, memory = model.step(memory, x)
        assert [t.shape for t in memory] == shapes and int(memory.length.max()) <= L


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


def test_only_vectors_of_floats_are_latents():
    for space in (Space((4, 4)), Space((4,), vocab=8)):
        with pytest.raises(ContractError, match="vector of floats"):
            TransformerDE(space, Actions(3, False))
