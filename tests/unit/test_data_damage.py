"""Damaged, doubled and replaced shards: never wrong numbers, and always a sentence that says what to do."""

import h5py
import pytest
from toy_rollouts import Game, contents, generate, said

from wmrl import files
from wmrl.data import parts, plan, shards
from wmrl.data.episodes import Episodes
from wmrl.data.info import info
from wmrl.errors import ArtifactError, ConfigError, ContractError, Stopped
from wmrl.spec import Actions
from wmrl.stages import generate as stage

pytestmark = pytest.mark.usefixtures("toy_game")


@pytest.fixture
def data(tmp_path):
    """A finished dataset of ten episodes in three shards; nothing played since."""
    generate(tmp_path / "data")
    Game.steps = []
    return tmp_path / "data"


def flip(path):
    """Change one bit of the first episode's return, which h5py reads without complaint."""
    image = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        at = file["return"].id.get_offset()
    image[at + 6] ^= 1
    path.write_bytes(image)


def test_a_flipped_bit_is_not_sealed_into_the_list(data):
    (data / "complete.h5").unlink()
    flip(data / "shard-000004-4.h5")
    for read in (
        lambda: shards.complete(data),
        lambda: Episodes(data, partial=True),
        lambda: info(data),
        lambda: shards.read_meta(data / "shard-000004-4.h5"),
        lambda: generate(data),
    ):
        with pytest.raises(ArtifactError, match=r"shard-000004-4\.h5 is damaged.*delete it.*same wmrl generate"):
            read()
    assert not (data / "complete.h5").exists()


def test_a_damaged_shard_is_said_before_others_are_played(data):
    flip(data / "shard-000004-4.h5")
    (data / "shard-000000-4.h5").unlink()
    with pytest.raises(ArtifactError, match=r"shard-000004-4\.h5 is damaged"):
        generate(data)
    assert not Game.steps


@pytest.mark.parametrize("kind", [KeyError, OSError, RuntimeError, TypeError, ValueError])
def test_what_goes_wrong_in_an_unverified_file_is_the_files_fault(data, kind):
    path = data / "complete.h5"
    with (
        pytest.raises(ArtifactError, match=r"complete\.h5 cannot be read: it is damaged"),
        files.open(path, verify=False),
    ):
        raise kind("no such thing")
    with pytest.raises(kind), files.open(path):
        raise kind("no such thing")
    for other in (Stopped(2), KeyboardInterrupt(), ConfigError("x")):
        with pytest.raises(type(other)), files.open(path, verify=False):
            raise other


def test_parts_that_cannot_be_read_count_for_nothing(data, monkeypatch):

    def fail(*args, **more):
        raise OSError("cannot read")

    files.write(data / "shard-000004-4.part.h5", lambda file: file.create_dataset("number", data=[1]), role=parts.ROLE)
    monkeypatch.setattr(h5py.Group, "__getitem__", fail)
    monkeypatch.setattr(h5py.AttributeManager, "__getitem__", fail)
    assert parts.count(data) == 0 and parts.made(data) is None


def test_shards_that_overlap_are_named_before_anything_is_played(data):
    meta = shards.provenance(shards.read_meta(data / "shard-000000-4.h5"))
    shards.write_shard(data, 0, [Episodes(data).episode(i) for i in range(2)], meta)
    (data / "shard-000008-2.h5").unlink()
    for read in (lambda: generate(data), lambda: Episodes(data, partial=True)):
        with pytest.raises(
            ArtifactError, match=r"episode 0 twice, in shard-000000-2\.h5 and in shard-000000-4\.h5: del"
        ):
            read()
    assert not Game.steps
    (data / "shard-000000-2.h5").unlink()
    assert len(generate(data)) == 10


def test_a_shard_of_no_episodes_or_of_another_spelling_is_no_shard(data):
    for name in ("shard-000000-0.h5", "shard-0000004-4.h5"):
        (data / name).write_bytes(b"")
    assert [name.first for name in shards.scan(data)] == [0, 4, 8]


def test_a_shard_made_again_with_other_bytes_is_listed_anew(data, monkeypatch):
    old = Episodes(data)
    (data / "shard-000004-4.h5").unlink()
    monkeypatch.setattr("wmrl.__version__", "999")
    new = generate(data)
    assert new.hash != old.hash and new.episode(5).seed == old.seeds[5]
    assert f"content hash has changed from {old.hash[:12]} to {new.hash[:12]}" in said(data)


def test_a_list_of_other_shards_is_brought_up_to_date(data):
    before = contents(data)["complete.h5"]
    meta = shards.provenance(shards.read_meta(data / "shard-000008-2.h5"))
    shards.write_shard(data, 8, [Episodes(data).episode(i) for i in (8, 9)], {**meta, "wmrl": "999"})
    with pytest.raises(ContractError, match=r"not the shard that complete\.h5 lists; the same wmrl generate"):
        info(data)
    generate(data)
    assert contents(data)["complete.h5"] != before and info(data)["complete"] and not Game.steps


@pytest.mark.parametrize("keep", [0, 300, -1])
def test_a_cut_shard_is_named_by_info_and_generate_and_made_again(data, keep):
    whole, path = contents(data), data / "shard-000004-4.h5"
    path.write_bytes(path.read_bytes()[:keep])
    for read in (lambda: info(data), lambda: generate(data)):
        with pytest.raises(ArtifactError, match=r"shard-000004-4\.h5 .*delete it, and the same wmrl generate"):
            read()
    path.unlink()
    with pytest.raises(ArtifactError, match=r"shard-000004-4\.h5 is missing; the same wmrl generate"):
        info(data)
    generate(data)
    assert contents(data) == whole


def test_a_damaged_list_is_made_anew_from_the_shards(data):
    whole = contents(data)
    for image in (b"", whole["complete.h5"][:-9]):
        (data / "complete.h5").write_bytes(image)
        generate(data)
        assert contents(data) == whole and not Game.steps
    assert "it is made anew from the shards" in said(data)


def test_a_list_of_a_later_format_is_left_alone(data):
    path = data / "complete.h5"
    path.write_bytes(path.read_bytes().replace(b"wmrl-sealed 1", b"wmrl-sealed 2", 1))
    before = path.read_bytes()
    with pytest.raises(files.LaterError, match="upgrade wmrl"):
        plan.listed(data)
    with pytest.raises(ArtifactError, match="upgrade wmrl"):
        generate(data)
    assert path.read_bytes() == before


def test_an_impossible_policy_is_refused_before_the_work_is_announced(tmp_path, monkeypatch):
    monkeypatch.setattr(Game, "actions", Actions(2, True))
    monkeypatch.setattr(stage, "_announce", lambda *given: pytest.fail("announced"))
    with pytest.raises(ConfigError, match="brown"):
        generate(tmp_path / "data", policy="brown")
