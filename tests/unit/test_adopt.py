"""A dataset that begins with the shards of another one, and grows by itself."""

from pathlib import Path

import pytest
from toy_rollouts import generate

from wmrl.data import adopt as module
from wmrl.data import shards
from wmrl.data.adopt import adopt
from wmrl.data.check import check
from wmrl.data.episodes import Episodes
from wmrl.errors import ArtifactError

pytestmark = pytest.mark.usefixtures("toy_game")


def names(folder: Path) -> list[str]:
    return [name.file for name in shards.scan(folder)]


def test_shards_are_links_and_what_is_appended_is_not_in_the_other(tmp_path):
    source, own = tmp_path / "a" / "data", tmp_path / "b" / "data"
    generate(source)
    assert adopt(source, own).hash == Episodes(source).hash
    assert all((source / name).samefile(own / name) for name in names(source))
    generate(own, append=3)
    assert (len(Episodes(source)), len(Episodes(own))) == (10, 13)
    assert Episodes(source).hash in Episodes(own).lineage() and not list(check(own))


def test_without_links_shards_are_copied(tmp_path, monkeypatch):
    source, own = tmp_path / "a" / "data", tmp_path / "b" / "data"
    generate(source)

    def refused(self, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert adopt(source, own).hash == Episodes(source).hash
    assert not any((source / name).samefile(own / name) for name in names(source))


def test_interrupted_it_goes_on_even_if_the_other_dataset_has_changed(tmp_path, monkeypatch):
    source, own = tmp_path / "a" / "data", tmp_path / "b" / "data"
    generate(source, 6)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.shards, "complete", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        adopt(source, own)
    with pytest.raises(ArtifactError, match="unfinished"):
        Episodes(own)
    for name in source.glob("*.h5"):
        name.unlink()
    generate(source, seed=2)
    assert adopt(source, own).hash == Episodes(source).hash
    assert names(own) == names(source) and not list(own.glob("*.tmp*"))


def test_a_dataset_that_is_not_complete_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no episodes"):
        adopt(tmp_path / "nothing", tmp_path / "own")
