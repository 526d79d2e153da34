"""HloModuleProto, the form in which XLA takes and gives a program: read and written without XLA."""

from llmcompile.hlo.instruction import Instruction, reduce_precision
from llmcompile.hlo.module import Alias, Computation, Module, parse, serialize
from llmcompile.hlo.shape import Shape

__all__ = ["Alias", "Computation", "Instruction", "Module", "Shape", "parse", "reduce_precision", "serialize"]
