"""Bundles that are broken, that answer NaN, and that a full disk interrupts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from loadtest.faults.load import Known, Load, apart, ask
from loadtest.faults.stage import Finding, SkippedError, Stage, broken, revmux

MANIFEST = "bundle.json"
COMMAND_SECONDS = 120.0
EMBEDDING = "embeddings.word_embeddings.weight"
POISON_EVERY = 20
"""One text of so many is answered with NaN."""


async def nan(stage: Stage) -> Finding:
    """Real weights, one number changed: the model knows nothing finite of one word."""
    finding = Finding(f"the embedding of one word is NaN; one request of {POISON_EVERY} has that word")
    folder = stage.out / "nan"
    word = _poison(stage, folder)
    async with stage.serving("nan", stage.command("--width", "max", bundle=folder / "bundle")) as server:
        # Merged as the exported weights are, they round a little otherwise.
        known = apart(await ask(server.port, [one.text for one in stage.known]))
        poisoned = [Known(f"{one.text} {word}", failing=True) for one in known[:8]]
        mixed: list[Known] = []
        for number, one in enumerate(known):
            mixed += [one, poisoned[number % len(poisoned)]] if number % POISON_EVERY == 0 else [one]

        async def nothing(load: Load) -> None:
            await load.more(1000)

        tally, finding.seconds = await broken(server, mixed, nothing)
        finding.tallies.append(tally)
        finding.expect(tally.failed > 0, "no request was answered with NaN")
    finding.judge("500")
    shutil.rmtree(folder)
    return finding


def _poison(stage: Stage, folder: Path) -> str:
    """Writes a bundle around the plain model with one changed row into `folder`: the word that it belongs to."""
    shutil.rmtree(folder, ignore_errors=True)
    model, bundle = folder / "model", folder / "bundle"
    base = ["--base", str(stage.base)] if stage.base is not None else []
    subprocess.run(revmux("export", "--bundle", str(stage.bundle), "--out", str(model), *base), check=True)
    vocabulary: dict[str, int] = json.loads((model / "tokenizer.json").read_bytes())["model"]["vocab"]
    said = set(re.findall(r"\w+", " ".join(one.text for one in stage.known).lower()))
    word = next(word for word in sorted(vocabulary) if re.fullmatch("[a-z]{6,}", word) and word not in said)
    weights = load_file(model / "model.safetensors")
    (name,) = [name for name in weights if name.endswith(EMBEDDING)]
    weights[name][vocabulary[word]] = np.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    shutil.copytree(stage.bundle, bundle)
    shutil.rmtree(bundle / "task", ignore_errors=True)

    def rebase(manifest: dict[str, Any]) -> None:
        manifest["base"] = {"model_id": str(model.resolve()), "sha256": _sha256(model / "model.safetensors")}
        manifest["tuned"] = False
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(model / file, bundle / "backbone" / file)
        manifest["files"] = {file: _sha256(bundle / file) for file in manifest["files"] if not file.startswith("task/")}

    _rewrite(bundle, rebase)
    return word


async def corrupted_bundle(stage: Stage) -> Finding:
    """A server refuses to start, in a sentence that names what is wrong."""
    finding = Finding("bundles with a file that is cut short, has a flipped bit, is missing, is no JSON or was changed")
    weights = next(str(path.relative_to(stage.bundle)) for path in sorted(stage.bundle.glob("adapters/*.safetensors")))

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1000])

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def garble(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-2] + b"]")

    def claim(path: Path) -> None:
        path.write_bytes(path.read_bytes().replace(b'"labels": [', b'"labels": ["other",', 1))

    damages: list[tuple[str, Callable[[Path], None]]] = [
        (weights, cut),
        (weights, flip),
        (weights, Path.unlink),
        (MANIFEST, garble),
        (MANIFEST, claim),
        ("backbone/tokenizer.json", cut),
    ]
    for number, (file, damage) in enumerate(damages):
        folder = stage.out / "corrupted"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stage.bundle, folder)
        damage(folder / file)
        # Of one process and of several.
        command = stage.command("--port", "0", "--http-workers", str(number % 2), bundle=folder)
        ended = await _run(command)
        said = ended.stderr.strip().splitlines()
        finding.notes.append(f"`{said[-1] if said else ''}`".replace(str(folder), "BUNDLE"))
        finding.expect(ended.returncode == 2, f"{damage.__name__} {file}: exit code {ended.returncode}")
        clear = bool(said) and said[-1].startswith("revmux: ") and "Traceback" not in ended.stderr
        finding.expect(clear, f"{damage.__name__} {file}: no clear sentence")
        shutil.rmtree(folder)
    return finding


async def disk_full(stage: Stage) -> Finding:
    """Whatever a command was writing when the disk was full, it says so, and the bundle that was there stays good."""
    finding = Finding("`revmux calibrate` and `export` on a file system of which 4 KiB are free")
    place = stage.out / "full"
    place.mkdir(exist_ok=True)
    size = sum(path.stat().st_size for path in stage.bundle.rglob("*") if path.is_file()) // 1024 + 512
    data = stage.out / "some.tsv"
    data.write_text("".join(stage.data.read_text(encoding="utf-8").splitlines(True)[:401]), encoding="utf-8")
    bundle, said = place / "bundle", stage.out / "disk-full.log"
    commands = [
        revmux("calibrate", "--bundle", str(bundle), "--data", str(data), "--width", "1", "--target", "0.9"),
        revmux("export", "--bundle", str(bundle), "--out", str(place / "model")),
    ]
    base = ["--base", str(stage.base)] if stage.base is not None else []
    # In a mount namespace of its own, which ends with the shell.
    script = [
        f"mount -t tmpfs -o size={size}k tmpfs {shlex.quote(str(place))} || exit 77",
        f"cp -r {shlex.quote(str(stage.bundle))} {shlex.quote(str(bundle))} || exit 77",
        f"cd {shlex.quote(str(place))}; dd if=/dev/zero of=fill bs=1k 2>&-; truncate -s -4k fill; cd - >&-",
    ]
    used = revmux("eval", "--bundle", str(bundle), "--data", str(data), "--draws", "1")
    script += [f"{shlex.join([*command, *base])} >&2; echo $?" for command in (*commands, used)]
    ended = await _run(["unshare", "--mount", "--map-root-user", "sh", "-c", "\n".join(script)])
    said.write_text(ended.stderr)
    if ended.returncode == 77 or not ended.stdout:
        raise SkippedError(f"no file system can be mounted here: {ended.stderr.strip()}")
    *codes, after = ended.stdout.split()
    sentences = [line for line in ended.stderr.splitlines() if line.startswith("revmux: ")]
    finding.notes += [f"`{line.replace(str(place), 'DISK')}`" for line in sentences]
    finding.expect(codes == ["2"] * len(commands), f"the commands ended with {', '.join(codes)}")
    finding.expect(len(sentences) == len(commands) and "Traceback" not in ended.stderr, "no clear sentence")
    finding.expect(after == "0", "the bundle that was there can no longer be used")
    return finding


async def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )


def _rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a manifest and signs it again, as `revmux` does."""
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    del manifest["digest"]
    change(manifest)
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
