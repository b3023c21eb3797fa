"""What Atheris runs: one malformed bundle, loaded and asked.

    python -m loadtest.fuzz.bundle_target BUNDLE OUT [libFuzzer's options] CORPUS

An input is a byte that says which part of the bundle it is about, mostly a file, and that file's content. Hashes and
digest are made to fit, so that the loader gets to read it. The bundle has to load, or to be refused with a
`RevmuxError` of one line. What does neither is written to OUT, once for each place in the code that it ends at, and
fuzzing goes on. What loads is asked two texts; where that fails, which a server's warm-up would notice before it
serves, it is written, too, as a note.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["revmux_core"]):
    from revmux_core.bundle import load_bundle
    from revmux_core.errors import RevmuxError
    from revmux_core.manifest import MANIFEST, digest_of

from loadtest.fuzz.mutate import mutator_of

RAW, FOLDER = "raw manifest", "folder"
"""Beside the files themselves: the manifest whose digest is left as it is, and what is done to the folder's files."""
SLOW_SECONDS = 5.0
"""A tiny bundle loads in a tenth of a second."""
LARGE_BYTES = 512 * 2**20
"""More than the largest of all before by so much is no tiny bundle's memory."""
LONGEST_MESSAGE = 1000
TEXTS = ["a good film", "bad " * 100]


class Target:
    """A bundle in a folder of its own, in which one file after another is exchanged."""

    def __init__(self, bundle: Path, out: Path) -> None:
        self._out = out
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-bundle-")) / "bundle"
        shutil.copytree(bundle, self._folder)
        names = [MANIFEST, *json.loads((bundle / MANIFEST).read_bytes())["files"]]
        self._whole = {name: (bundle / name).read_bytes() for name in names}
        self.parts = [RAW, FOLDER, *self._whole]
        self._seen: set[str] = set()

    def seeds(self) -> list[bytes]:
        """The bundle as it is, an input for each of its parts."""
        return [
            bytes([part]) + self._whole.get(MANIFEST if name == RAW else name, b"\0\0")
            for part, name in enumerate(self.parts)
        ]

    def run(self, data: bytes) -> None:
        if not data:
            return
        part = self.parts[data[0] % len(self.parts)]
        changed = self._change(part, data[1:])
        began, most = time.monotonic(), _peak()
        problem, loaded = "", False
        try:
            bundle = load_bundle(self._folder)
            loaded = True
            bundle.classify(TEXTS, quality="exact")
            bundle.classify(TEXTS)
        except RevmuxError as error:
            message = str(error)
            if "\n" in message or not 0 < len(message) <= LONGEST_MESSAGE:
                problem = f"not one sentence: {type(error).__name__} at {_place(error)}"
        except BaseException as error:
            problem = f"{type(error).__name__} at {_place(error)}"
        finally:
            self._restore(changed)
        if not problem and time.monotonic() - began > SLOW_SECONDS:
            problem = f"slow: {part}"
        if not problem and _peak() - most > LARGE_BYTES:
            problem = f"large: {part}"
        self._keep(problem, part, data, "note" if loaded else "txt")

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Another input: libFuzzer's own changes, or one that keeps the file's format. Every other one is of a whole
        file again: those all cover the same, so libFuzzer keeps few of them."""
        draw = random.Random(seed)
        if not data or draw.random() < 0.5:
            data = draw.choice(self.seeds())
        part = self.parts[data[0] % len(self.parts)]
        own = mutator_of(MANIFEST if part == RAW else part)
        if own is not None and draw.random() < 0.8:
            try:
                changed = data[:1] + own(data[1:], draw)
                return changed if len(changed) <= max_size else data[:max_size]
            except (ValueError, RecursionError, OverflowError, KeyError):
                pass
        return bytes(atheris.Mutate(data, max_size))

    def _change(self, part: str, content: bytes) -> list[str]:
        """Puts the malformed part in place; returns which files it is about."""
        if part == FOLDER:
            names = list(self._whole)
            changed = [names[byte % len(names)] for byte in content[::2][:4]]
            for name, how in zip(changed, content[1::2], strict=False):
                _spoil(self._folder / name, how)
            return changed
        if part == RAW:
            (self._folder / MANIFEST).write_bytes(content)
            return [MANIFEST]
        manifest = json.loads(self._whole[MANIFEST])
        if part == MANIFEST:
            try:
                manifest = json.loads(content)
            except (ValueError, RecursionError):
                return []
        else:
            (self._folder / part).write_bytes(content)
            manifest["files"][part] = hashlib.sha256(content).hexdigest()
        if isinstance(manifest, dict):
            manifest.pop("digest", None)
            manifest["digest"] = digest_of(manifest)
        (self._folder / MANIFEST).write_text(json.dumps(manifest))
        return [part, MANIFEST]

    def _restore(self, names: list[str]) -> None:
        for name in names:
            path = self._folder / name
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(self._whole[name])

    def _keep(self, problem: str, part: str, data: bytes, suffix: str) -> None:
        if problem and problem not in self._seen:
            self._seen.add(problem)
            name = hashlib.sha256(problem.encode()).hexdigest()[:12]
            (self._out / f"{name}.{suffix}").write_text(f"{part}: {problem}\n")
            (self._out / f"{name}.input").write_bytes(data)


def _spoil(path: Path, how: int) -> None:
    path.unlink(missing_ok=True) if path.is_symlink() or not path.is_dir() else path.rmdir()
    match how % 7:
        case 0:
            path.touch()
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("/etc/passwd")
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to("nowhere")
        case 5:
            os.mkfifo(path)


def _place(error: BaseException) -> str:
    """The file and line that it was raised at, and our own line that led there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "revmux_core" in frame.filename]
    return " from ".join(
        dict.fromkeys(
            f"{Path(frame.filename).name}:{frame.lineno}" for frame in (frames[-1], own[-1] if own else frames[0])
        )
    )


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    bundle, out, *options = sys.argv[1:]
    target = Target(Path(bundle), Path(out))
    corpus = Path(options[-1])
    for part, seed in enumerate(target.seeds()):
        (corpus / f"seed-{part}").write_bytes(seed)
    arguments: list[Any] = [sys.argv[0], *options]
    atheris.Setup(arguments, target.run, custom_mutator=target.mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
