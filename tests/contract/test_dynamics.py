"""One contract for every dynamics model, whatever is inside. A new kind needs one line in SMALL."""

import pytest
import torch
from torch import Tensor, nn

from wmrl.artifact import of, read
from wmrl.config import build, resolved
from wmrl.draws import Common
from wmrl.dynamics import DYNAMICS
from wmrl.spec import Actions, Batch, Space, take, tree_map, where
from wmrl.store import rebuild
from wmrl.world import WorldModel

B, T = 4, 5
TINY = {
    "width": 32,
    "blocks": 2,
    "heads": 4,
    "feedforward": 64,
    "hidden": 32,
    "context": 9,
    "dropout": 0.0,
    "mixtures": 2,
}
STATE = {"variables": 8, "classes": 4, "units": 32, "layers": 1, "free_nats": 0.0}
TOKENS = {"width": 24, "blocks": 1, "heads": 2, "feedforward": 48, "context": 9}
FACTORS = {"density_width": 16, "density_blocks": 1, "density_heads": 2, "density_feedforward": 16}
RSSM = {
    "variables": 4,
    "classes": 4,
    "deterministic": 16,
    "blocks": 2,
    "hidden": 32,
    "units": 32,
    "layers": 2,
    "dyn_scale": 0.08,
    "rep_scale": 0.02,
}
GAUSS = {"state": "gaussian", "observation": "scaled", "cell": "layer-norm", "dyn_scale": 0.8, "rep_scale": 0.2}
ENCODED = {"size": 32, "units": 64, "layers": 1, "frames": 3, "horizon": 3}
SMALL = [
    (Space((6,)), {"kind": "mdn-rnn", "hidden": 16, "mixtures": 2}),
    (Space((6,)), {"kind": "mdn-rnn", "hidden": 16, "mixtures": 2, "mixture": "per_dimension", "features": "zch"}),
    (Space((1,)), {"kind": "mdn-rnn", "hidden": 5, "mixtures": 1, "features": "z"}),
    (Space((6,)), {"kind": "transformer-de", **TINY}),
    (
        Space((4,)),
        {"kind": "transformer-de", **TINY, "positions": "rotary", "mixture": "per_dimension", "dropout": 0.0},
    ),
    (Space((6,)), {"kind": "trade", **TINY, "features": "published", "dropout": 0.01}),
    (Space((6,)), {"kind": "rssm", **RSSM}),
    (Space((6,)), {"kind": "rssm", **RSSM, **GAUSS}),
    (
        Space((6,)),
        {"kind": "rssm", **RSSM, "observation": "symlog", "reward": "two-hot", "cell": "block", "norm": "rms"},
    ),
    (Space((4, 10, 10)), {"kind": "rssm", **RSSM, "depth": 4, "embedding": 8, "outcomes": "published"}),
    (Space((3, 16, 16)), {"kind": "rssm", **RSSM, "depth": 8, "embedding": 8, "unimix": 0.01}),
    (Space((3,)), {"kind": "trade", **TINY, "density": "autoregressive", **FACTORS, "features": "z"}),
    (Space((6,)), {"kind": "latent", **ENCODED}),
    (Space((1,)), {"kind": "latent", **ENCODED, "residual": True, "orthogonal": False}),
    (Space((6,)), {"kind": "latent", **ENCODED, "codes": "fsq", "levels": [5, 8]}),
    (Space((6,)), {"kind": "tssm", **STATE, **TOKENS, "actions_only": True}),
    (Space((6,)), {"kind": "tssm", **STATE, **TOKENS, "layout": "add", "positions": "rotary", "features": "z"}),
    (Space((4,)), {"kind": "tssm", **STATE, **TOKENS, "layout": "concat", "state": "gaussian", "reach": 4}),
    (Space((4, 10, 10)), {"kind": "tssm", **STATE, **TOKENS, "dense": True, "objective": "published"}),
]
models = pytest.mark.parametrize(
    ("space", "table"), SMALL, ids=lambda x: x["kind"] if isinstance(x, dict) else str(x.shape)
)
LINES = [(space, table) for space, table in SMALL if len(space.shape) == 1]
FIRST = {table["kind"]: i for i, (_, table) in reversed(list(enumerate(LINES)))}
vectors = pytest.mark.parametrize(  # they learn for seconds: of each kind all but the first line are slow
    ("space", "table"),
    [pytest.param(s, t, marks=[] if FIRST[t["kind"]] == i else pytest.mark.slow) for i, (s, t) in enumerate(LINES)],
    ids=lambda x: x["kind"] if isinstance(x, dict) else str(x.shape),
)
spaces = pytest.mark.parametrize("actions", [Actions(3, True), Actions(2, False)], ids=["discrete", "continuous"])
ONE = Actions(3, True)


class Still(nn.Module):
    """A representation whose frames are latents already."""

    def __init__(self, latent: Space):
        super().__init__()
        self.latent = latent

    def encode(self, obs: Tensor) -> Tensor:
        return obs

    def draw(self, code: Tensor, *, sample: bool, rng: torch.Generator | None = None) -> Tensor:
        return code

    def decode(self, latent: Tensor) -> Tensor:
        return latent


def make(space: Space, table: dict, actions: Actions = ONE) -> WorldModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WorldModel(Still(space), build(DYNAMICS, table, "dynamics", space, actions))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(space: Space, *lead: int, seed: int = 0) -> Tensor:
    if space.vocab is not None:
        return torch.randint(space.vocab, (*lead, *space.shape), generator=seeded(seed))
    return torch.randn(*lead, *space.shape, generator=seeded(seed))


def some_actions(actions: Actions, *lead: int, seed: int = 0) -> Tensor:
    if actions.discrete:
        return torch.eye(actions.size)[torch.randint(actions.size, lead, generator=seeded(seed))]
    return torch.rand(*lead, actions.size, generator=seeded(seed)) * 2 - 1


def some_batch(space: Space, actions: Actions = ONE, b: int = B, t: int = T) -> Batch:
    reward, ends = torch.randn(b, t, generator=seeded(7)), torch.zeros(b, t)
    ends[0, -1] = 1
    return Batch(latents(space, b, t + 1), some_actions(actions, b, t), reward, ends, torch.ones(b, t))


def skip_if_certain(table: dict) -> None:
    """A latent model without codes dreams one dream only."""
    if table["kind"] == "latent" and table.get("codes") != "fsq":
        pytest.skip("nothing is drawn")


def assert_same(a, b, atol: float = 0.0) -> None:
    tree_map(lambda x, y: torch.testing.assert_close(x, y, atol=atol, rtol=atol) or x, a, b)


def test_every_registered_kind_is_here():
    assert {table["kind"] for _, table in SMALL} == set(DYNAMICS)


@models
@spaces
def test_shapes(space, table, actions):
    world, batch = make(space, table, actions), some_batch(space, actions)
    state = world.start(batch.obs[:, 0], seeded(0))
    for t in range(3):
        state = world.observe(state, batch.action[:, t], batch.obs[:, t + 1], seeded(t))
    for k in range(12):  # past the limit of any window
        state, reward, cont = world.imagine(state, some_actions(actions, B, seed=k), seeded(k))
        assert reward.shape == cont.shape == (B,) and (cont >= 0).all() and (cont <= 1).all()
    assert world.features(state).shape == (B, *world.feature_shape)
    assert world.frame(state).shape == (B, *space.shape)
    tree_map(lambda x: x if len(x) == B else pytest.fail(f"a state's first axis is the batch, got {x.shape}"), state)


@models
@spaces
def test_loss_falls_on_one_batch(space, table, actions):
    world, batch = make(space, table, actions), some_batch(space, actions)
    optimizer = torch.optim.Adam(world.dynamics.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss, metrics = world.loss(batch, seeded(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(not m.requires_grad and m.ndim == 0 for m in metrics.values())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in world.dynamics.parameters())


@models
def test_mask_hides_padding(space, table):
    """Neither loss nor gradient knows what lies behind the mask."""
    seen = []
    for other in (0.0, 99.0):
        world, batch = make(space, table), some_batch(space)
        batch.mask[:, 3:] = 0
        batch.obs[:, 4:] = batch.obs[:, 4:] if space.vocab is not None else batch.obs[:, 4:] + other
        batch.reward[:, 3:] = other
        batch.terminated[:, 3:] = float(other > 0)
        loss, _ = world.loss(batch, seeded(1))
        loss.backward()
        seen.append([loss.detach(), *(p.grad for p in world.dynamics.parameters())])
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@models
def test_a_masked_window_weighs_nothing(space, table):
    world, batch = make(space, table).eval(), some_batch(space)
    batch.mask[1:] = 0
    alone = Batch(*(x[:1] for x in (batch.obs, batch.action, batch.reward, batch.terminated, batch.mask)))
    torch.testing.assert_close(world.loss(batch)[0], world.loss(alone)[0])  # without rng nothing is drawn


@models
def test_rows_are_independent(space, table):
    """A row of a state depends on its own row only; `where` and `take` choose rows of any state."""
    world, batch = make(space, table), some_batch(space)
    start = world.start(batch.obs[:, 0], seeded(0))
    after = world.observe(start, batch.action[:, 0], batch.obs[:, 1], seeded(0))
    changed = batch.obs[:, 1].clone()
    changed[2] = latents(space, 1, seed=5)[0]
    other = world.observe(start, batch.action[:, 0], changed, seeded(0))
    rest = torch.tensor([0, 1, 3])
    assert_same(take(after, rest), take(other, rest))
    assert_same(
        take(world.imagine(after, batch.action[:, 1], seeded(3)).state, rest),
        take(world.imagine(other, batch.action[:, 1], seeded(3)).state, rest),
    )
    mixed = where(torch.tensor([True, False, True, False]), start, after)
    assert_same(take(mixed, torch.tensor([0, 2])), take(start, torch.tensor([0, 2])))
    assert_same(take(mixed, torch.tensor([1, 3])), take(after, torch.tensor([1, 3])))


@models
def test_a_row_is_the_same_in_any_batch(space, table):
    world, batch = make(space, table), some_batch(space)
    whole = world.observe(world.start(batch.obs[:, 0]), batch.action[:, 0], batch.obs[:, 1])
    alone = world.observe(world.start(batch.obs[2:3, 0]), batch.action[2:3, 0], batch.obs[2:3, 1])
    assert_same(take(whole, torch.tensor([2])), alone, atol=1e-6)


@models
def test_steps_return_new_states(space, table):
    world, batch = make(space, table), some_batch(space)
    state = world.start(batch.obs[:, 0])
    copy = tree_map(torch.clone, state)
    world.observe(state, batch.action[:, 0], batch.obs[:, 1], seeded(0))
    world.imagine(state, batch.action[:, 0], seeded(0))
    assert_same(state, copy)


@models
@spaces
def test_equal_randomness_gives_equal_results(space, table, actions):
    world, batch = make(space, table, actions), some_batch(space, actions)
    torch.manual_seed(1)
    first = [
        world.loss(batch, seeded(2))[0],
        world.imagine(world.start(batch.obs[:, 0]), batch.action[:, 0], seeded(2)),
    ]
    torch.manual_seed(99)  # the global generator is not asked
    second = [
        world.loss(batch, seeded(2))[0],
        world.imagine(world.start(batch.obs[:, 0]), batch.action[:, 0], seeded(2)),
    ]
    assert_same(tuple(first), tuple(second))
    state = torch.random.get_rng_state()
    world.imagine(world.start(batch.obs[:, 0]), batch.action[:, 0], seeded(2))
    assert state.equal(torch.random.get_rng_state())


@models
def test_gradients_flow_through_a_dream_and_a_likelihood(space, table):
    world, batch = make(space, table), some_batch(space)
    action, state, total = batch.action[:, 0].clone().requires_grad_(), world.start(batch.obs[:, 0]), 0.0
    for k in range(12):  # past the end of any window
        state, reward, _ = world.imagine(state, action, seeded(k))
        total = total + reward.sum() + world.features(state).sum()
    total.backward()
    assert action.grad.isfinite().all() and action.grad.abs().sum() > 0
    if hasattr(world.dynamics, "log_prob"):
        world.dynamics.log_prob(world.start(batch.obs[:, 0]), action, batch.obs[:, 1]).sum().backward()


@models
def test_at_temperature_zero_chance_has_no_part(space, table):
    world, batch = make(space, table), some_batch(space)
    state = world.start(batch.obs[:, 0])
    a, b = (world.imagine(state, batch.action[:, 0], seeded(k), temperature=0.0).state for k in (1, 2))
    assert_same(a, b)


@models
def test_other_randomness_gives_other_dreams(space, table):
    skip_if_certain(table)
    world, batch = make(space, table), some_batch(space)
    state = world.start(batch.obs[:, 0])
    a, b = (world.dynamics.latent(world.imagine(state, batch.action[:, 0], seeded(k)).state) for k in (1, 2))
    assert not a.equal(b)


@models
def test_rows_of_one_episode_dream_the_same_whoever_else_dreams(space, table):
    """Common random numbers reach every draw of a model; all rows take one action."""
    skip_if_certain(table)
    world, seeds = make(space, table), [7, 7, 9]
    first, action = latents(space, 1).expand(3, *space.shape), some_actions(ONE, 1).expand(3, -1)

    def dream(rows: int) -> Tensor:
        with Common(seeds[:rows]) as noise, torch.no_grad():
            state = world.start(first[:rows], noise.rng)
            for _ in range(12):  # past the limit of any window
                state = world.imagine(state, action[:rows], noise.rng).state
        return world.dynamics.latent(state)

    together = dream(3)
    torch.testing.assert_close(together[0], together[1])
    torch.testing.assert_close(together[0], dream(1)[0], atol=1e-4, rtol=1e-4)
    assert not torch.isclose(together[0], together[2]).all()


@models
def test_saved_and_loaded_it_gives_the_same(space, table, tmp_path):
    world, batch = make(space, table).eval(), some_batch(space)
    made = of(world.dynamics, "dynamics", resolved(DYNAMICS, table, "dynamics"), (space, ONE))
    made.write(tmp_path / "dynamics.h5")
    back = WorldModel(Still(space), rebuild(read(tmp_path / "dynamics.h5", "dynamics")))
    assert read(tmp_path / "dynamics.h5", "dynamics").hash == made.hash
    torch.testing.assert_close(back.loss(batch, seeded(0))[0], world.loss(batch, seeded(0))[0], atol=1e-6, rtol=1e-6)
    assert_same(
        back.imagine(back.start(batch.obs[:, 0]), batch.action[:, 0], seeded(0)),
        world.imagine(world.start(batch.obs[:, 0]), batch.action[:, 0], seeded(0)),
    )


@models
@spaces
def test_step_by_step_it_is_as_surprised_as_in_a_window(space, table, actions):
    """`log_prob` along `observe` is the density that the loss of a window speaks of."""
    world, batch = make(space, table, actions).eval(), some_batch(space, actions)
    if not hasattr(world.dynamics, "log_prob"):
        pytest.skip("no density")
    nll = world.loss(batch)[1]["nll"]  # without rng nothing is drawn
    state, steps = world.start(batch.obs[:, 0]), []
    for t in range(T):
        steps.append(world.dynamics.log_prob(state, batch.action[:, t], batch.obs[:, t + 1]))
        state = world.observe(state, batch.action[:, t], batch.obs[:, t + 1])
    torch.testing.assert_close(-torch.stack(steps).mean() / space.shape[0], nll)


@vectors
def test_learnt_in_windows_it_holds_step_by_step(space, table):
    """A process with a memory: the next latent is the sign of the action before last. Learnt in windows."""
    size, rng = space.shape[0], seeded(0)
    signs = (torch.randint(2, (64, 9), generator=rng) * 2 - 1).float()
    z = torch.zeros(64, 10, size)
    z[:, 2:] = signs[:, :8, None].expand(-1, -1, size)
    action = torch.stack([signs, torch.zeros(64, 9)], -1)
    z = z + 0.05 * torch.randn(z.shape, generator=rng)
    batch = Batch(z, action, signs, torch.zeros(64, 9), torch.ones(64, 9))
    world = make(space, table, Actions(2, False))
    optimizer = torch.optim.Adam(world.dynamics.parameters(), 1e-2)
    for _ in range(250):
        loss, _ = world.loss(batch, seeded(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        state = world.start(z[:, 0])
        for t in range(7):
            step = world.imagine(state, action[:, t], seeded(t), temperature=0.1)
            if t >= 2:  # before, a model of relative positions has to tell a window of one step from one of two
                error = (world.dynamics.latent(step.state) - z[:, t + 1]).abs().mean()
                assert error < 0.25, f"step {t} misses by {error:.2f}"
                assert (step.reward - signs[:, t]).abs().mean() < 0.3
            assert (step.cont > 0.8).all()
            state = world.observe(state, action[:, t], z[:, t + 1])


@vectors
def test_learnt_in_windows_it_is_true_far_behind_them(space, table):
    """Nats at steps 33 to 200, through `observe`, are those inside training windows."""
    size, rng, far = space.shape[0], seeded(0), 200
    action = some_actions(Actions(2, False), 64, far)
    z = torch.zeros(64, far + 1, size)
    for t in range(far):  # what comes next depends on nothing but the latent and the action
        z[:, t + 1] = 0.7 * z[:, t] + 0.5 * action[:, t, :1] + 0.3 * torch.randn(64, size, generator=rng)
    world = make(space, table, Actions(2, False))
    if not hasattr(world.dynamics, "log_prob"):
        pytest.skip("no density")
    optimizer = torch.optim.Adam(world.dynamics.parameters(), 5e-3)
    for k in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - k / 200)
        begin = int(torch.randint(far - 9, (), generator=rng))
        loss, _ = world.loss(window(z, action, begin), seeded(k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    world.eval()
    with torch.no_grad():
        inside = [world.loss(window(z, action, begin))[1]["nll"] for begin in range(33, far - 9, 9)]
        state, outside = world.start(z[:, 0]), []
        for t in range(far):
            outside.append(-world.dynamics.log_prob(state, action[:, t], z[:, t + 1]).mean() / size)
            state = world.observe(state, action[:, t], z[:, t + 1])
    gap = torch.stack(outside[33:]).mean() - torch.stack(inside).mean()
    assert -0.05 < gap < 0.02, f"{gap:.3f} nats per dimension worse step by step than in windows"


def window(z: Tensor, action: Tensor, begin: int, length: int = 9) -> Batch:
    part = slice(begin, begin + length)
    zero, one = torch.zeros(len(z), length), torch.ones(len(z), length)
    return Batch(z[:, begin : begin + length + 1], action[:, part], zero, zero, one)
