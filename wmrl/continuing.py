"""May a stored training state be continued here, and with what?"""

from collections.abc import Mapping, Sequence

import torch

from wmrl.errors import ContractError
from wmrl.log import Log


def grown(name: str, stored: Mapping[str, str], parents: Mapping[str, Sequence[str]]) -> str:
    """The parent of a training that has grown since, or "".

    Args:
        name: What is trained, for messages.
        stored: The parents' content hashes when the training state was kept.
        parents: The hashes from which a training may be continued, the present one last.

    Raises:
        ContractError: if a parent is another one.
    """
    found = ""
    for key, hashes in parents.items():
        if stored.get(key) not in hashes:
            raise ContractError(f"the training of {name} was begun with another {key}; begin anew with --noreload")
        found = found if stored[key] == hashes[-1] else key
    return found


def threads(name: str, stored: int, log: Log) -> None:
    """Compute with as many threads as before: the same bits need the same number."""
    if stored != torch.get_num_threads():
        log.say(f"computing with {stored} threads, because {name} was begun so (the bits depend on it)")
        torch.set_num_threads(stored)


def precision(name: str, stored: str, asked: str, log: Log) -> str:
    """The precision to go on in: the one before, unless another is asked for."""
    if asked in ("auto", stored):
        return stored
    log.warn(f"{name} was begun in {stored} and goes on in {asked}, as --precision asks")
    return asked
