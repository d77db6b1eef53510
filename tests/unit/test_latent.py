"""Latent world models: what is learnt, on which steps, from which target, and what it shows of collapse."""

import pytest
import torch
from torch import Tensor

from wmrl.dynamics.latent import LatentModel
from wmrl.errors import ContractError
from wmrl.nn.mlp import mlp
from wmrl.nn.sight import Nets, Probe, effective_rank, spread
from wmrl.nn.slow import Slow
from wmrl.representations.pixels import Pixels
from wmrl.spec import Actions, Batch, Space, tree_map
from wmrl.world import WorldModel

SMALL = {"size": 8, "depth": 4, "units": 16, "layers": 1}
FSQ = {"codes": "fsq", "levels": (4, 3)}
ACTIONS = Actions(2, False)
VECTOR, GRID, PICTURE = Space((3,)), Space((4, 10, 10)), Space((3, 32, 32))
kinds = pytest.mark.parametrize("codes", [{}, {"residual": True}, FSQ], ids=["continuous", "residual", "fsq"])


def make(space: Space = VECTOR, **how) -> LatentModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LatentModel(space, ACTIONS, **{**SMALL, **how})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(space: Space, *lead: int) -> Tensor:
    if space == GRID:
        return torch.rand(*lead, *space.shape, generator=seeded()) < 0.3
    if space == PICTURE:
        return torch.randint(256, (*lead, *space.shape), generator=seeded(), dtype=torch.uint8)
    return torch.randn(*lead, *space.shape, generator=seeded())


def some_batch(space: Space = VECTOR, b: int = 3, t: int = 7) -> Batch:
    """The first window is padded behind its fourth step; the second crosses to another episode at row 4."""
    action = torch.rand(b, t, 2, generator=seeded(1)) * 2 - 1
    mask, first, ends = torch.ones(b, t), torch.zeros(b, t + 1), torch.zeros(b, t)
    mask[0, 4:], mask[1, 3], first[1, 4], ends[0, 3] = 0, 0, 1, 1
    reward = torch.randn(b, t, generator=seeded(2))
    return Batch(observations(space, b, t + 1), action, reward, ends, mask, first=first)


def step(model: LatentModel, optimizer: torch.optim.Optimizer, k: int) -> None:
    loss, _ = model.train().loss(some_batch().obs, some_batch(), rng=seeded(k))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("frames", [1, 3])
@kinds
def test_the_loss_is_that_of_a_walk_through_each_piece(codes, frames):
    model, batch, horizon = make(frames=frames, horizon=3, decay=0.5, **codes), some_batch(), 3
    loss, metrics = model.eval().loss(batch.obs, batch)
    seen = model.states(batch.obs, batch)  # of weights that the slow copy has too
    total = dict.fromkeys(("consistency", "reward", "termination"), 0.0)
    weights = 0.0
    for b in range(3):
        for begin in range(0, 7, horizon):
            state = tree_map(lambda x, b=b, t=begin: x[b : b + 1, t], seen)
            for k, t in enumerate(range(begin, min(begin + horizon, 7))):
                if not batch.mask[b, t]:
                    break  # the episode is over: what follows cannot be imagined from here
                action = batch.action[b : b + 1, t]
                out = model._advance(state.z, action, None)[1]
                next_state, reward, cont = model.imagine(state, action)
                target = seen.z[b : b + 1, t + 1]
                if codes == FSQ:
                    code = model.quantise.index(target)
                    apart = torch.nn.functional.cross_entropy(out.view(4, 12), code.flatten())
                else:
                    apart = 2 - 2 * torch.cosine_similarity(next_state.z, target)
                right = torch.where(batch.terminated[b, t] > 0, 1 - cont, cont)
                for name, value in {
                    "consistency": apart,
                    "reward": (reward - batch.reward[b, t]) ** 2,
                    "termination": -right.log(),
                }.items():
                    total[name] += 0.5**k * value.item()
                weights += 0.5**k
                state = next_state
    for name, value in total.items():
        assert metrics[name].item() == pytest.approx(value / weights, rel=1e-4), name
    assert loss.item() == pytest.approx(sum(metrics[n].item() for n in ("reward", "termination", "probe")), rel=1e-5)


@pytest.mark.parametrize("space", [VECTOR, GRID, PICTURE], ids=str)
@pytest.mark.parametrize("frames", [1, 3])
def test_states_of_windows_are_those_of_a_walk(space, frames):
    model, batch = make(space, frames=frames).eval(), some_batch(space)
    world = WorldModel(Pixels(space), model)
    walked = world._walk(batch.obs, batch, None)
    tree_map(lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5) or a, world.states(batch), walked)
    assert world.learn(batch, seeded())[2].z.equal(world.states(batch).z)


@pytest.mark.parametrize("space", [VECTOR, GRID, PICTURE], ids=str)
def test_the_probe_learns_to_show_what_was_observed(space):
    model, batch = make(space, units=64, size=32), some_batch(space)
    plain = batch.obs[:, :1] if space == VECTOR else batch.obs[:, :1, :, :1, :1]
    batch.obs[:] = plain.clone()  # one observation, over and over, of one colour
    optimizer, seen = torch.optim.Adam(model.parameters(), 1e-2), []
    for k in range(60):
        loss, metrics = model.loss(batch.obs, batch, rng=seeded(k))
        seen.append(metrics["probe"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert seen[-1] < 0.7 * seen[0]
    world = WorldModel(Pixels(space), model)
    frame = world.frame(world.start(batch.obs[:, 0]))
    assert frame.shape == (3, *space.shape)
    assert space == VECTOR or (frame.min() >= 0 and frame.max() <= 1)


def test_nothing_learns_from_the_probe():
    z = torch.randn(5, 8, generator=seeded()).requires_grad_()
    Probe(8, VECTOR, nets=Nets(4, 16, 1, "elu", "none")).loss(z, observations(VECTOR, 5), torch.ones(5)).backward()
    assert z.grad is None


def test_without_a_probe_a_state_has_no_picture():
    model = make(probe=False)
    with pytest.raises(ContractError, match="dynamics.probe = true"):
        model.latent(model.start(observations(VECTOR, 1)))
    assert "probe" not in model.loss(some_batch().obs, some_batch(), rng=seeded())[1]


def test_states_lie_on_the_levels_from_the_first_on():
    model, batch = make(**FSQ), some_batch()
    state = model.start(batch.obs[:, 0])
    for t in range(3):
        codes = model.quantise.index(state.z)
        assert state.z.equal(model.quantise.table[codes].flatten(-2))
        state = model.imagine(state, batch.action[:, t], rng=seeded(t)).state
    assert model.imagine(state, batch.action[:, 0]).state.z.equal(model.imagine(state, batch.action[:, 0]).state.z)


def test_encodings_have_one_length_seen_or_imagined():
    model, batch = make(residual=True), some_batch()
    state = model.start(batch.obs[:, 0])
    for z in (state.z, model.imagine(state, batch.action[:, 0]).state.z):
        torch.testing.assert_close(z.norm(dim=-1), torch.full((3,), 8**0.5))


def test_a_residual_model_that_predicts_no_change_stays():
    for residual in (True, False):
        model, batch = make(residual=residual), some_batch()
        torch.nn.init.zeros_(model.next[-1].weight)
        torch.nn.init.zeros_(model.next[-1].bias)
        state = model.start(batch.obs[:, 0])
        stays = torch.isclose(model.imagine(state, batch.action[:, 0]).state.z, state.z, atol=1e-6).all()
        assert stays == residual


def test_codes_are_drawn_in_training_and_the_likeliest_in_eval_mode():
    model, batch = make(**FSQ), some_batch()
    a, b = (model.train().loss(batch.obs, batch, rng=seeded(k))[0] for k in (1, 2))
    assert not a.equal(b)
    a, b = (model.eval().loss(batch.obs, batch, rng=rng)[0] for rng in (seeded(1), None))
    assert a.equal(b)


def test_the_slow_copy_follows_in_training_alone():
    model, batch = make(target_rate=0.1), some_batch()
    model.loss(batch.obs, batch, rng=seeded())  # equal to the parameters, it stays to the bit
    before = model.encoder.eye.net[0].weight.detach().clone()
    slow = model.target.get_buffer("eye-net-0-weight")
    assert slow.equal(before)
    with torch.no_grad():
        model.encoder.eye.net[0].weight += 1
        model.loss(batch.obs, batch, rng=seeded())
    model.eval().loss(batch.obs, batch)
    assert slow.equal(before)
    model.train().loss(batch.obs, batch, rng=seeded())
    torch.testing.assert_close(slow, before + 0.1)
    assert not slow.requires_grad and not any("target" in name for name, _ in model.named_parameters())


def test_the_slow_copy_computes_with_its_own_weights():
    net = mlp(3, 2, units=4, layers=1)
    slow, x = Slow(net, 0.5), torch.randn(5, 3, generator=seeded())
    before = net(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    torch.testing.assert_close(slow(net, x), before)
    assert not slow(net, x).requires_grad and not torch.isclose(net(x), before).any()
    with pytest.raises(ValueError, match="rate"):
        Slow(net, 0.0)


@kinds
def test_stopped_and_restored_it_goes_on_to_the_same_bits(codes):
    whole, first, second = (make(target_rate=0.1, **codes) for _ in range(3))
    optimizers = [torch.optim.Adam(model.parameters(), 1e-2) for model in (whole, first, second)]
    for k in range(6):
        step(whole, optimizers[0], k)
    for k in range(3):
        step(first, optimizers[1], k)
    second.load_state_dict(first.state_dict())
    optimizers[2].load_state_dict(optimizers[1].state_dict())
    for k in range(3, 6):
        step(second, optimizers[2], k)
    assert all(value.equal(second.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not whole.target.get_buffer("eye-net-0-weight").equal(whole.encoder.eye.net[0].weight)


def test_collapse_shows():
    x = torch.zeros(40, 6)
    x[torch.arange(40), torch.arange(40) % 4] = torch.where(torch.arange(40) < 20, 1.0, -1.0)
    assert effective_rank(x + 5, torch.ones(40)).item() == pytest.approx(4, rel=1e-3)  # what all have in common is none
    assert effective_rank(torch.ones(40, 6), torch.ones(40)).item() == pytest.approx(1, abs=1e-3)
    assert spread(x, torch.ones(40)).item() == pytest.approx(4 / 6 * 0.5)
    real = torch.ones(40)
    real[30:] = 0  # padding does not count
    other = torch.where(real[:, None] > 0, x, torch.full_like(x, 9.0))
    assert effective_rank(other, real).item() == pytest.approx(effective_rank(x[:30], real[:30]).item(), rel=1e-4)
    assert spread(other, real).item() == pytest.approx(spread(x[:30], real[:30]).item())
    model, batch = make(), some_batch()
    torch.nn.init.zeros_(model.encoder.trunk[-1].weight)  # all encodings are the bias
    torch.nn.init.ones_(model.encoder.trunk[-1].bias)
    model.target = Slow(model.encoder, 0.1)
    metrics = model.eval().loss(batch.obs, batch)[1]
    assert metrics["rank"] == pytest.approx(1, abs=1e-3) and metrics["spread"] == pytest.approx(0, abs=1e-6)


def test_orthogonal_weights_are_an_option():
    weight = make().encoder.trunk[-1].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)
    weight = make(orthogonal=False).encoder.trunk[-1].weight
    assert (weight @ weight.T - torch.eye(8)).abs().max() > 0.1


def test_each_part_of_the_loss_has_its_weight():
    batch, weights = some_batch(), {"consistency": 2.0, "reward": 0.5, "continue": 3.0}
    model = make(**{f"{name}_scale": weight for name, weight in weights.items()})
    for training in (True, False):
        total, parts = model.train(training).loss(batch.obs, batch, rng=seeded(2))
        wanted = 2 * parts["consistency"] * training + 0.5 * parts["reward"] + 3 * parts["termination"]
        torch.testing.assert_close(total, wanted + parts["probe"])


def test_numbers_that_make_no_sense_are_refused():
    for name, wrong in {
        "size": {"size": 0},
        "multiple": {"codes": "fsq", "size": 9, "levels": (8, 8)},
        "residual": {"codes": "fsq", "residual": True},
        "decay": {"decay": 0.0},
        "rate": {"target_rate": 2.0},
    }.items():
        with pytest.raises(ValueError, match=name):
            make(**wrong)
    with pytest.raises(ContractError, match="tokens"):
        make(Space((16,), vocab=512))
