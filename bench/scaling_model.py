"""A model of training on 1 to 64 devices: memory, computation and communication of a step. It fills the tables of
docs/scaling.md from the results of `scaling_counts.py` and the assumptions in `Machine`.

python bench/scaling_model.py
"""

import json
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from ltfast.benchmark.results import digits
from scaling_counts import COUNTS, IMAGES, LOADING, ROOT, WORKS, Count, Work

PAGE, STEPS = ROOT / "docs/scaling.md", ROOT / "bench/results/cpu/steps.json"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
WORLDS = (1, 8, 16, 32, 64)
MEMORIES = (24, 80, 141)  # GB


@dataclass(frozen=True)
class Machine:
    """Assumptions, none of which is measured. The first five come from data sheets: of NVIDIA's H200 SXM, and of eight
    400 Gb/s network adapters per node."""

    peak: float = 989e12  # operations per second of bfloat16 matrix products, without sparsity
    memory: float = 141e9  # bytes
    devices: int = 8  # devices per node
    link: float = 450e9  # bytes per second between devices of a node, in each direction
    network: float = 8 * 50e9  # bytes per second between nodes, in each direction
    convolutions: float = 0.10  # fraction of the peak that a ResNet reaches
    transformer: float = 0.40  # fraction of the peak that a vision transformer and large matrix products reach
    launch: float = 5e-6  # seconds for the CPU to launch an operator
    reached: float = 0.8  # fraction of the bandwidth of link and network that collectives reach
    latency: float = 20e-6  # seconds of a collective in addition to the transfer
    overlap: float = 2 / 3  # fraction of a step (its backward pass) that overlaps with the all-reduce of the gradients
    usable: float = 0.9  # fraction of the memory available for the counted bytes
    cores: int = 16  # CPU cores per device that load images

    def bandwidth(self, world: int) -> float:
        """The bandwidth in bytes per second of a ring of `world` devices."""
        return self.reached * (self.link if world <= self.devices else min(self.link, self.network))

    def all_reduce(self, size: float, world: int) -> float:
        """Seconds for a ring all-reduce of `size` bytes: each device sends all but one of `world` parts, twice."""
        return 0.0 if world == 1 or not size else self.latency + 2 * (world - 1) / world * size / self.bandwidth(world)

    def all_gather(self, size: float, world: int) -> float:
        """Seconds for an all-gather of `size` bytes in total."""
        return 0.0 if world == 1 or not size else self.latency + (world - 1) / world * size / self.bandwidth(world)

    def broadcast(self, size: float, world: int) -> float:
        return 0.0 if world == 1 or not size else self.latency + size / self.bandwidth(world)

    def products(self, operations: float) -> float:
        """Seconds for large matrix products."""
        return operations / (self.transformer * self.peak)


H200 = Machine()


@dataclass(frozen=True)
class Step:
    """The parts of a step in seconds: arithmetic, launches, communication that does not overlap, and data loading."""

    arithmetic: float
    launches: float
    sent: float
    loading: float

    @property
    def device(self) -> float:
        return max(self.arithmetic, self.launches) + self.sent

    @property
    def waits_for(self) -> str:
        """The part that takes longest on the device."""
        parts = {"arithmetic": self.arithmetic, "launches": self.launches, "sending": self.sent}
        return max(parts, key=lambda name: parts[name])


def fixed_bytes(work: Work, count: Count) -> float:
    """The bytes that do not depend on the batch size: weights, their bfloat16 copies, gradients, the communication
    buckets of DistributedDataParallel, the optimiser's state, a momentum encoder, buffers, and the loss's state."""
    networks = (4 * count.parameters + count.buffers) * (1 + work.encoders)
    return networks + count.trained * (2 + 4 + 4 + 4 * work.states) + work.state(work.recipe)


def buffer_bytes(work: Work, count: Count) -> float:
    """The bytes that DistributedDataParallel broadcasts from the first process before each step. The state of the
    losses is excluded, since every process computes it."""
    return count.buffers * (1 + work.encoders)


def step(work: Work, count: Count, world: int, milliseconds: float, machine: Machine = H200) -> Step:
    """Model a step with the recipe's batch on `world` devices.

    Args:
        work, count: the stage and its counts.
        world: number of devices.
        milliseconds: CPU time in ms to load an image.
        machine: the assumptions.
    """
    recipe, number = work.recipe, work.images / world
    arithmetic = number * count.step / (getattr(machine, work.kind) * machine.peak)
    arithmetic += machine.products(work.operations(recipe) / world)
    launches = count.launches * machine.launch
    gradients = machine.all_reduce(4 * count.trained, world) - machine.overlap * max(arithmetic, launches)
    sent = max(0.0, gradients) + machine.broadcast(buffer_bytes(work, count), world)
    sent += machine.all_reduce(work.reduced(recipe), world) + machine.all_gather(work.gathered(recipe), world)
    return Step(arithmetic, launches, sent, number * milliseconds / 1e3 / machine.cores)


def size(number: float) -> str:
    if not number:
        return ""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{digits(number / factor)} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    for unit, factor, least in (("h", 3600, 3600), ("min", 60, 60), ("s", 1, 1), ("ms", 1e-3, 1e-3)):
        if seconds >= least:
            return f"{digits(seconds / factor)} {unit}"
    return f"{1e6 * seconds:.0f} us"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def table(heading: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *lines))


def assumptions() -> str:
    gbs = 1e9
    words = {
        "peak": f"{H200.peak / 1e12:.0f} TFLOP/s of bfloat16 matrix products (data sheet)",
        "memory": f"{H200.memory / gbs:.0f} GB (data sheet)",
        "devices": f"{H200.devices} devices per node",
        "link": f"{H200.link / gbs:.0f} GB/s per direction between devices of a node (data sheet: 900 in total)",
        "network": f"{H200.network / gbs:.0f} GB/s per direction between nodes (data sheet: eight 400 Gb/s adapters)",
        "convolutions": f"a ResNet reaches {percent(H200.convolutions)} of the peak",
        "transformer": f"a vision transformer and large matrix products reach {percent(H200.transformer)} of the peak",
        "launch": f"the CPU takes {1e6 * H200.launch:.0f} us to launch an operator (without `--compile`)",
        "reached": f"collectives reach {percent(H200.reached)} of the bandwidth of link and network",
        "latency": f"a collective takes {1e6 * H200.latency:.0f} us in addition to the transfer",
        "overlap": f"the all-reduce of gradients overlaps with the backward pass, {percent(H200.overlap)} of a step",
        "usable": f"{percent(H200.usable)} of the memory is for the counted bytes, the rest for workspaces and gaps",
        "cores": f"{H200.cores} CPU cores per device load images",
    }
    return table(["name", "assumption"], [[f"`{field.name}`", words[field.name]] for field in fields(Machine)])


def counted(counts: dict[str, Count]) -> str:
    heading = ["stage", "parameters", "trained", "GFLOP, forward", "GFLOP, forward and backward",
               "saved for backward", "operators"]  # fmt: skip
    return table(
        heading,
        [
            [
                work.name,
                f"{count.parameters / 1e6:.1f} M",
                f"{count.trained / 1e6:.2f} M",
                f"{count.forward / 1e9:.1f}",
                f"{count.step / 1e9:.1f}",
                size(count.saved),
                f"{count.launches:,}",
            ]
            for work, count in ((work, counts[work.name]) for work in WORKS)
        ],
    )


def held(counts: dict[str, Count]) -> str:
    lines = []
    for work in WORKS:
        fixed = fixed_bytes(work, counts[work.name])
        fit = [int((H200.usable * memory * 1e9 - fixed) // counts[work.name].saved) for memory in MEMORIES]
        lines.append([work.name, size(fixed), size(work.state(work.recipe)), *(f"{number:,}" for number in fit)])
    heading = ["stage", "fixed", "of which the loss", *(f"images in {memory} GB" for memory in MEMORIES)]
    return table(heading, lines)


def checked(benched: dict[str, Count]) -> str:
    lines = []
    for row in json.loads(STEPS.read_text())["rows"]:
        if row["implementation"] == "ltfast":
            count = benched[row["method"]]
            expected = (row["images"] * count.saved + 4 * count.trained) / 2**20
            what = f"{row['method']}, {row['network']}, {row['images']} images"
            share = f"{row['peak_mib'] / expected:.2f}"
            lines.append([what, f"{digits(expected)} MiB", f"{digits(row['peak_mib'])} MiB", share])
    return table(["step", "saved and gradients, counted", "peak, measured", "measured / counted"], lines)


def sent(counts: dict[str, Count]) -> str:
    heading = ["stage", "gradients, all-reduce", "buffers, broadcast", "statistics, all-reduce", "rows, all-gather"]
    return table(
        heading,
        [
            [
                work.name,
                size(4 * counts[work.name].trained),
                size(buffer_bytes(work, counts[work.name])),
                size(work.reduced(work.recipe)),
                size(work.gathered(work.recipe)),
            ]
            for work in WORKS
        ],
    )


def loaded(counts: dict[str, Count], measured: dict[str, Any]) -> str:
    lines = []
    for work in WORKS:
        milliseconds = measured["milliseconds"][work.views]
        rate = getattr(H200, work.kind) * H200.peak / counts[work.name].step
        cores = f"{rate * milliseconds / 1e3:.0f}"
        lines.append([work.name, work.views, f"{milliseconds:.1f} ms", f"{rate:,.0f}", cores])
    heading = ["stage", "views", "CPU time per image, measured", "images/s of a device, modelled", "cores to keep up"]
    source = f"Measured on one core of an {measured['machine']}, on {measured['photographs']}; medians of CPU time."
    return f"{table(heading, lines)}\n\n{source}"


def times(counts: dict[str, Count], measured: dict[str, Any]) -> str:
    lines = []
    for work in WORKS:
        steps = work.epochs(work.recipe) * (work.drawn * IMAGES // work.images)
        at = {world: step(work, counts[work.name], world, measured["milliseconds"][work.views]) for world in WORLDS}
        for world, one in at.items():
            lines.append(
                [
                    work.name if world == 1 else "",
                    f"{world}",
                    f"{work.images / world:g}",
                    duration(one.device),
                    percent(at[1].device / (world * one.device)),
                    one.waits_for,
                    duration(one.loading),
                    duration(steps * one.device),
                    duration(steps * max(one.device, one.loading)),
                ]
            )
    heading = ["stage", "devices", "images per device", "step", "efficiency", "longest part", "loading per step",
               "whole stage", "whole stage, with loading"]  # fmt: skip
    return table(heading, lines)


def networks(counts: dict[str, Count]) -> str:
    """The all-reduce of gradients over two nodes."""
    world, slow = 2 * H200.devices, replace(H200, network=12.5e9)
    lines = []
    for work in WORKS:
        count, gradients = counts[work.name], 4 * counts[work.name].trained
        one = step(work, count, world, 0.0)
        hidden = H200.overlap * max(one.arithmetic, one.launches)
        taken = [duration(machine.all_reduce(gradients, world)) for machine in (H200, slow)]
        lines.append([work.name, duration(hidden), size(gradients), *taken])
    heading = ["stage", "backward pass", "gradients", "all-reduce at 400 GB/s per node",
               "at 12.5 GB/s (one 100 Gb/s adapter)"]  # fmt: skip
    return table(heading, lines)


def queues() -> str:
    """Queues of bfloat16 keys of width 128, with 4096 anchors."""
    width, anchors, lines = 128, 4096, []
    for exponent in (16, 20, 24, 28):
        keys = 2**exponent
        whole = keys * (2 * width + 8)
        products = H200.products(4 * anchors * keys * width)
        fit = next(world for world in (1, 2, 4, 8, 16, 32, 64) if whole / world <= H200.usable * H200.memory / 2)
        shares = [size(whole / world) for world in (1, 8, 64)]
        lines.append([f"2^{exponent}", *shares, f"{fit}", *(duration(products / world) for world in (1, 8, 64))])
    heading = ["keys", "size", "per device, 8 devices", "64 devices", "devices for half their memory",
               "products, 1 device", "8 devices", "64 devices"]  # fmt: skip
    return table(heading, lines)


def classes() -> str:
    """Float32 classifiers on 768 features with momentum, for a batch of 1024 with bfloat16 logits."""
    width, batch, lines = 768, 1024, []
    for number in (1000, 8142, 100_000, 1_000_000, 10_000_000):
        whole = number * (3 * 4 * width + 2 * 2 * batch)  # weights, gradients, momentum; logits and their gradient
        gradients = 4 * number * width
        lines.append(
            [
                f"{number:,}",
                *(size(whole / world) for world in (1, 8, 64)),
                *(duration(H200.products(3 * 2 * batch * number * width / world)) for world in (1, 8, 64)),
                size(gradients),
                duration(H200.all_reduce(gradients, 8)),
            ]
        )
    heading = ["classes", "size", "per device, 8 devices", "64 devices", "products, 1 device", "8 devices",
               "64 devices", "gradients, if replicated", "their all-reduce, 8 devices"]  # fmt: skip
    return table(heading, lines)


def tables() -> dict[str, str]:
    """The tables of the page, by the names of their markers."""
    saved, measured = json.loads(COUNTS.read_text()), json.loads(LOADING.read_text())
    counts, benched = ({name: Count(**row) for name, row in saved[key].items()} for key in ("stages", "benched"))
    return {
        "assumptions": assumptions(),
        "counted": counted(counts),
        "held": held(counts),
        "checked": checked(benched),
        "sent": sent(counts),
        "loaded": loaded(counts, measured),
        "times": times(counts, measured),
        "networks": networks(counts),
        "queues": queues(),
        "classes": classes(),
    }


def filled(text: str) -> str:
    """A page with its tables generated again.

    Raises:
        ValueError: the markers of a table are missing.
    """
    for name, content in tables().items():
        begin, end = BEGIN.format(name), END.format(name)
        block = f"{begin}\n\n{content}\n\n{end}"
        text, found = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _, b=block: b, text, flags=re.DOTALL)
        if not found:
            raise ValueError(f"{PAGE} lacks the markers of table {name!r}: add {begin} and {end}")
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
