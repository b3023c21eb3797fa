"""From a peer to its contenders: installed, its model converted, its commands complete, or the reason why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from loadtest.machine import has_bfloat16
from loadtest.peers.compare import Contender
from loadtest.peers.environments import (
    PREPARE_SECONDS,
    Environment,
    PeerError,
    call,
    environment,
    fill,
    has_gpu,
    present,
    variables,
    version_of,
)
from loadtest.peers.peer import APPS, BFLOAT16, Peer

EXPORT_SECONDS = 300.0


def line_up(
    peer: Peer, venv: Path, model: Path, texts: Path, out: Path, progress: Callable[[str], None]
) -> list[Contender]:
    """One contender a setting. `model` is the exported folder, `texts` a file of sentences; `out` takes conversions.

    A peer without `requirements` is ours and runs in the present environment.
    """
    contenders = [Contender(peer, setting) for setting in peer.settings]
    if peer.needs_gpu and not has_gpu():
        return _all_with(contenders, "needs a GPU")
    work, log = (out / peer.key).absolute(), out / "logs" / f"{peer.key}.log"
    log.unlink(missing_ok=True)
    foreign = peer.requirements.is_file()
    try:
        if foreign:
            progress(f"environment of {peer.title}")
        found = environment(peer, venv.absolute(), log) if foreign else present()
    except PeerError as error:
        return _all_with(contenders, str(error))
    places = {"python": found.python, "bin": found.bin, "model": model.absolute(), "apps": APPS}
    places |= {"texts": texts.absolute(), "work": work}
    for contender in contenders:
        contender.version = version_of(found, peer.package)
        contender.packages = found.versions
        contender.command = fill(list(contender.setting.command), places)
        if foreign:
            contender.variables = variables(found, contender.setting.environment)
    if not has_bfloat16():
        _all_with([c for c in contenders if c.setting.precision == BFLOAT16], "needs a CPU with bfloat16")
    if peer.prepare and not work.is_dir():
        progress(f"converting the model for {peer.title}")
        try:
            _convert(peer, places, found, log)
        except PeerError as error:
            _all_with([c for c in contenders if any("{work}" in part for part in c.setting.command)], str(error))
    return contenders


def _convert(peer: Peer, places: Mapping[str, Path], found: Environment, log: Path) -> None:
    """Converts into a folder of another name first: half a conversion must not be taken for a whole one next time."""
    work = places["work"]
    partial = work.with_name(f"{work.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    call(fill(list(peer.prepare), {**places, "work": partial}), log, PREPARE_SECONDS, variables(found, {}))
    partial.rename(work)


def _all_with(contenders: list[Contender], problem: str) -> list[Contender]:
    for contender in contenders:
        contender.problem = problem
    return contenders
