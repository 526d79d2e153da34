"""Field numbers of the messages that an HLO module is made of, and XLA's names of element types.

Source: openxla/xla@0b8fa9f2834ac7c177e5684dcfa587c6bec08b29:xla/service/hlo.proto and
openxla/xla@011b7582cb7d1ef78d66a0742e528eb50f61e32f:xla/xla_data.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType


class ModuleField(IntEnum):
    """HloModuleProto."""

    NAME = 1
    ENTRY_COMPUTATION_NAME = 2
    COMPUTATIONS = 3
    HOST_PROGRAM_SHAPE = 4
    ID = 5
    ENTRY_COMPUTATION_ID = 6
    SCHEDULE = 7
    INPUT_OUTPUT_ALIAS = 8
    CROSS_PROGRAM_PREFETCHES = 10
    IS_DYNAMIC = 11
    SPMD_OUTPUT_SHARDING = 12
    PROFILE_INFO = 13
    SPMD_PARAMETERS_SHARDINGS = 14
    DEVICE_ASSIGNMENT = 15
    USE_AUTO_SPMD_PARTITIONING = 16
    STACK_FRAME_INDEX = 17
    BUFFER_DONOR = 18
    FRONTEND_ATTRIBUTES = 19


class ComputationField(IntEnum):
    """HloComputationProto."""

    NAME = 1
    INSTRUCTIONS = 2
    PROGRAM_SHAPE = 4
    ID = 5
    ROOT_ID = 6
    IS_FUSION_COMPUTATION = 7
    EXECUTION_THREAD = 8


class InstructionField(IntEnum):
    """HloInstructionProto."""

    NAME = 1
    OPCODE = 2
    SHAPE = 3
    METADATA = 7
    LITERAL = 8
    PARAMETER_NUMBER = 9
    TUPLE_INDEX = 13
    DIMENSIONS = 14
    WINDOW = 15
    CONVOLUTION_DIMENSION_NUMBERS = 16
    SLICE_DIMENSIONS = 17
    EXPONENT_BITS = 18
    MANTISSA_BITS = 19
    DYNAMIC_SLICE_SIZES = 20
    PADDING_CONFIG = 21
    CHANNEL_ID = 26
    CUSTOM_CALL_TARGET = 28
    DOT_DIMENSION_NUMBERS = 30
    GATHER_DIMENSION_NUMBERS = 33
    GATHER_SLICE_SIZES = 34
    ID = 35
    OPERAND_IDS = 36
    CONTROL_PREDECESSOR_IDS = 37
    CALLED_COMPUTATION_IDS = 38
    SHARDING = 40
    BACKEND_CONFIG = 43
    ALL_REDUCE_ID = 45
    SCATTER_DIMENSION_NUMBERS = 48
    REPLICA_GROUPS = 49
    FEATURE_GROUP_COUNT = 50
    PRECISION_CONFIG = 51
    SOURCE_TARGET_PAIRS = 52
    CONSTRAIN_LAYOUT = 56
    OPERAND_SHAPES_WITH_LAYOUT = 57
    BATCH_GROUP_COUNT = 58
    PARAMETER_REPLICATION = 61
    COMPARISON_DIRECTION = 63
    CUSTOM_CALL_HAS_SIDE_EFFECT = 65
    FRONTEND_ATTRIBUTES = 68
    RNG_ALGORITHM = 70
    USE_GLOBAL_DEVICE_IDS = 71
    OUTPUT_OPERAND_ALIASING = 74
    CUSTOM_CALL_SCHEDULE = 76
    CUSTOM_CALL_API_VERSION = 77
    K = 81
    STATISTICS_VIZ = 82
    COLLECTIVE_DEVICE_LIST = 87
    ORIGINAL_VALUE = 88
    IS_COMPOSITE = 89
    RESULT_ACCURACY = 91


class ShapeField(IntEnum):
    """ShapeProto."""

    ELEMENT_TYPE = 2
    DIMENSIONS = 3
    TUPLE_SHAPES = 4
    LAYOUT = 5
    IS_DYNAMIC_DIMENSION = 6


class LayoutField(IntEnum):
    """LayoutProto."""

    MINOR_TO_MAJOR = 1
    TILES = 6
    ELEMENT_SIZE_IN_BITS = 7
    MEMORY_SPACE = 8
    DIM_LEVEL_TYPES = 9
    TAIL_PADDING_ALIGNMENT_IN_ELEMENTS = 16


class ProgramShapeField(IntEnum):
    """ProgramShapeProto."""

    PARAMETERS = 1
    RESULT = 2
    PARAMETER_NAMES = 3


class AliasField(IntEnum):
    """HloInputOutputAliasProto.AliasEntryProto; the list of entries is field 1 of HloInputOutputAliasProto."""

    OUTPUT_SHAPE_INDEX = 1
    PARAMETER_NUMBER = 2
    PARAMETER_SHAPE_INDEX = 3
    KIND = 4


class MetadataField(IntEnum):
    """OpMetadata."""

    OP_NAME = 2
    SOURCE_FILE = 3
    SOURCE_LINE = 4


class DotField(IntEnum):
    """DotDimensionNumbers."""

    LHS_CONTRACTING = 1
    RHS_CONTRACTING = 2
    LHS_BATCH = 3
    RHS_BATCH = 4


class GatherField(IntEnum):
    """GatherDimensionNumbers."""

    OFFSET_DIMS = 1
    COLLAPSED_SLICE_DIMS = 2
    START_INDEX_MAP = 3
    INDEX_VECTOR_DIM = 4


class ScatterField(IntEnum):
    """ScatterDimensionNumbers."""

    UPDATE_WINDOW_DIMS = 1
    INSERTED_WINDOW_DIMS = 2
    SCATTER_DIMS_TO_OPERAND_DIMS = 3
    INDEX_VECTOR_DIM = 4


class LiteralField(IntEnum):
    """LiteralProto; the integers of 32 and 64 bits, which are varints."""

    SHAPE = 1
    S32S = 4
    S64S = 5
    U32S = 6
    U64S = 7


class WindowField(IntEnum):
    """WindowDimension; the list of dimensions is field 1 of Window."""

    SIZE = 1
    STRIDE = 2
    PADDING_LOW = 3
    PADDING_HIGH = 4
    WINDOW_DILATION = 5
    BASE_DILATION = 6


class DeviceListField(IntEnum):
    """CollectiveDeviceListProto."""

    REPLICA_GROUPS = 1
    IOTA_REPLICA_GROUP_LIST = 2


class IotaField(IntEnum):
    """IotaReplicaGroupListProto."""

    NUM_REPLICA_GROUPS = 1
    NUM_DEVICES_PER_GROUP = 2
    IOTA_RESHAPE_DIMS = 3
    IOTA_TRANSPOSE_PERM = 4


ELEMENTS = 1
"""Field of the one repeated value in ReplicaGroup, Window, HloInputOutputAliasProto."""

ELEMENT_TYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "pred",
        2: "s8",
        3: "s16",
        4: "s32",
        5: "s64",
        6: "u8",
        7: "u16",
        8: "u32",
        9: "u64",
        10: "f16",
        11: "f32",
        12: "f64",
        13: "tuple",
        14: "opaque",
        15: "c64",
        16: "bf16",
        17: "token",
        18: "c128",
        19: "f8e5m2",
        20: "f8e4m3fn",
        21: "s4",
        22: "u4",
        23: "f8e4m3b11fnuz",
        24: "f8e5m2fnuz",
        25: "f8e4m3fnuz",
        26: "s2",
        27: "u2",
        28: "f8e4m3",
        29: "f8e3m4",
        30: "s1",
        31: "u1",
        32: "f4e2m1fn",
        33: "f8e8m0fnu",
        34: "buffer",
    }
)
"""PrimitiveType by number, as HLO text spells it."""
NUMBERS: Mapping[str, int] = MappingProxyType({name: number for number, name in ELEMENT_TYPES.items()})
BITS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("s1", "u1"), 1),
        **dict.fromkeys(("s2", "u2"), 2),
        **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
        **dict.fromkeys(("pred", "s8", "u8", "f8e5m2", "f8e4m3fn", "f8e4m3b11fnuz", "f8e5m2fnuz", "f8e4m3fnuz"), 8),
        **dict.fromkeys(("f8e4m3", "f8e3m4", "f8e8m0fnu"), 8),
        **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
        **dict.fromkeys(("s32", "u32", "f32"), 32),
        **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
        "c128": 128,
    }
)
"""Width of an element; tuples, tokens, buffers and opaque values have none."""
