"""What an instance family has: memory of a core, and how many cores may run one model together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmcompile.exporters.neuron.flags import LNC

GIB = 1 << 30
CODE_BYTES = 96 << 20
"""Of a physical core's memory, what the runtime's own code takes.

Source: aws-neuron/aws-neuron-sdk@81ce03ae:neuron-runtime/explore/device-memory.rst.
"""


@dataclass(frozen=True)
class Target:
    """An instance family.

    Attributes:
        physical_bytes: Memory of a physical core; a logical core has that of all it is made of.
        lncs: Physical cores that a logical core may be made of.
        degrees: Logical cores of one instance that may run a model together.
        more: Beyond those, multiples of this number over several instances; 0 for none.
    """

    physical_bytes: int
    lncs: tuple[int, ...]
    degrees: tuple[int, ...]
    more: int = 0

    def takes(self, cores: int) -> bool:
        """Whether so many logical cores may run a model together."""
        return cores in self.degrees or (self.more > 0 and cores > 0 and cores % self.more == 0)

    @property
    def allowed(self) -> str:
        """The numbers of cores, for a message."""
        numbers = ", ".join(str(cores) for cores in self.degrees[:-1])
        last = f"{self.degrees[-1]} or a multiple of {self.more}" if self.more > 0 else f"or {self.degrees[-1]}"
        return f"{numbers}, {last}"


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "inf2": Target(16 * GIB, (1,), (1, 2, 4, 8, 12, 24)),
        "trn1": Target(16 * GIB, (1,), (1, 2, 8, 16, 32), more=32),
        "trn1n": Target(16 * GIB, (1,), (1, 2, 8, 16, 32), more=32),
        "trn2": Target(12 * GIB, (1, 2), (1, 2, 4, 8, 16, 32, 64)),
    }
)
"""By the name `--target` takes.

Sources: aws-neuron/aws-neuron-sdk@81ce03ae: libraries/nxd-inference/developer_guides/feature-guide.rst, section
"Tensor-parallelism support" (16 GB of inf2 and trn1, 24 GB of trn2 at LNC 2; trn2 1 to 64, inf2 1, 2, 4, 8, 24, trn1 1,
2, 8, 16, 32); about-neuron/transformers/generative-llm-inference-with-neuron.rst adds 12 of inf2 (an inf2.24xlarge has
12 cores); about-neuron/arch/neuron-features/logical-neuroncore-config.rst (24 GB shared by two cores of trn2). The
runtime's own words for trn1 are "1, 2, 8, 16 or a multiple of 32": huggingface/optimum-neuron#619.
"""


def core_bytes(target: str, lnc: int | None = None) -> int:
    """Memory of a logical core.

    Args:
        target: One of `TARGETS`.
        lnc: Physical cores it is made of; None for the family's default.
    """
    return TARGETS[target].physical_bytes * (LNC[target] if lnc is None else lnc)


def gib(size_bytes: int) -> str:
    """A size for a message, in GiB with one decimal, or in MiB where that would be nothing."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB // 10 else f"{size_bytes / (1 << 20):.1f} MiB"
