"""From processor times to what served throughput can be at most. Pure: no processes, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from loadtest.measure import median_of_known


class Parts(NamedTuple):
    """Processor time of a server's parts, in seconds.

    `device` is the threads of the process with the model beside its main one, `loop`: what computes, and makes and
    takes apart its batches. `front_end` is all other processes of the server.
    """

    front_end: float
    loop: float
    device: float


def by_part(seconds: Mapping[tuple[int, int], float], engine: int | None) -> Parts:
    """`seconds` are those of threads, by process and thread; `engine` is the process with the model, None: there is
    none. A process's main thread has its number."""
    loop = sum(spent for thread, spent in seconds.items() if thread == (engine, engine))
    whole = sum(spent for (process, _), spent in seconds.items() if process == engine)
    return Parts(sum(seconds.values()) - whole, loop, whole - loop)


@dataclass(frozen=True, slots=True)
class Visit:
    """A server in one round, or the medians over rounds.

    Saturated: `rate` texts answered a second, and the processor time of the `generator` and of the server's `Parts`, in
    seconds a text. With one request in flight, means in seconds: `client` is what a request took, `request` and
    `inference` what the server says of that; None where it says nothing.
    """

    rate: float
    generator: float
    front_end: float
    loop: float
    device: float
    client: float
    request: float | None
    inference: float | None

    @property
    def http(self) -> float:
        """What a text takes of the saturated server beside the device's threads."""
        return self.front_end + self.loop

    @property
    def beside_inference(self) -> float | None:
        """With one request in flight."""
        return None if self.request is None or self.inference is None else self.request - self.inference

    @property
    def cores(self) -> float:
        """Processor time a second of the saturated server and the generator."""
        return self.rate * (self.http + self.device + self.generator)


def over_rounds(visits: Sequence[Visit]) -> Visit:
    return Visit(
        rate=median(visit.rate for visit in visits),
        generator=median(visit.generator for visit in visits),
        front_end=median(visit.front_end for visit in visits),
        loop=median(visit.loop for visit in visits),
        device=median(visit.device for visit in visits),
        client=median(visit.client for visit in visits),
        request=median_of_known([visit.request for visit in visits]),
        inference=median_of_known([visit.inference for visit in visits]),
    )


def come_together(concurrency: int) -> int:
    """Requests that come at once to a server with so many in flight: half, as the others wait for the next batch."""
    return max(concurrency // 2, 1)


def most_of_offline(device: float, http: float, generator: float) -> float:
    """The share of the engine's own throughput that is left for it at most where all three share the cores, from
    processor times a text: E / (E + H + G)."""
    return device / (device + http + generator)
