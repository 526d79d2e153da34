"""Fields and enums of Triton's model configuration, as data, so that config.pbtxt is read without protobuf.

Source: triton-inference-server/common@83adf7cf:protobuf/model_config.proto, names and types; the table is compared with
the descriptors of tritonclient 2.73.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ROOT = "ModelConfig"
"""The message that a config.pbtxt holds."""
INTEGERS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "int32": (-(2**31), 2**31 - 1),
        "int64": (-(2**63), 2**63 - 1),
        "uint32": (0, 2**32 - 1),
        "uint64": (0, 2**64 - 1),
    }
)
"""Integer type -> its least and greatest value."""


@dataclass(frozen=True)
class Field:
    """A field of a message.

    Attributes:
        type: string, bool, float, double, one of `INTEGERS`, `ENUMS` or `MESSAGES`; of the values of a map.
        repeated: Whether it holds a list.
        key: Type of a map's keys; None for what is no map.
        oneof: Name of the choice it belongs to, of which one field may be set; None for none.
    """

    type: str
    repeated: bool = False
    key: str | None = None
    oneof: str | None = None


def _fields(*declared: str) -> Mapping[str, Field]:
    """Name -> field, of declarations in proto's own words: "repeated int64 dims", "map<string, string> metric_tags"."""
    made = {}
    for words in declared:
        rest, _, name = words.rpartition(" ")
        if rest.startswith("map<"):
            key, _, value = rest[len("map<") : -1].partition(", ")
            made[name] = Field(value, key=key)
        elif rest.startswith("oneof "):
            _, oneof, kind = rest.split(" ")
            made[name] = Field(kind, oneof=oneof)
        else:
            made[name] = Field(rest.removeprefix("repeated "), repeated=rest.startswith("repeated "))
    return MappingProxyType(made)


ENUMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "DataType": (
            "TYPE_INVALID",
            "TYPE_BOOL",
            "TYPE_UINT8",
            "TYPE_UINT16",
            "TYPE_UINT32",
            "TYPE_UINT64",
            "TYPE_INT8",
            "TYPE_INT16",
            "TYPE_INT32",
            "TYPE_INT64",
            "TYPE_FP16",
            "TYPE_FP32",
            "TYPE_FP64",
            "TYPE_STRING",
            "TYPE_BF16",
        ),
        "ModelInstanceGroup.Kind": (
            "KIND_AUTO",
            "KIND_GPU",
            "KIND_CPU",
            "KIND_MODEL",
        ),
        "ModelInstanceGroup.SecondaryDevice.SecondaryDeviceKind": ("KIND_NVDLA",),
        "ModelInput.Format": (
            "FORMAT_NONE",
            "FORMAT_NHWC",
            "FORMAT_NCHW",
        ),
        "BatchInput.Kind": (
            "BATCH_ELEMENT_COUNT",
            "BATCH_ACCUMULATED_ELEMENT_COUNT",
            "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
            "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
            "BATCH_ITEM_SHAPE",
            "BATCH_ITEM_SHAPE_FLATTEN",
        ),
        "BatchOutput.Kind": ("BATCH_SCATTER_WITH_INPUT_SHAPE",),
        "ModelOptimizationPolicy.ModelPriority": (
            "PRIORITY_DEFAULT",
            "PRIORITY_MAX",
            "PRIORITY_MIN",
        ),
        "ModelQueuePolicy.TimeoutAction": (
            "REJECT",
            "DELAY",
        ),
        "ModelSequenceBatching.Control.Kind": (
            "CONTROL_SEQUENCE_START",
            "CONTROL_SEQUENCE_READY",
            "CONTROL_SEQUENCE_END",
            "CONTROL_SEQUENCE_CORRID",
        ),
    }
)
"""Enum -> the names of its values, in the order of their numbers from 0."""
MESSAGES: Mapping[str, Mapping[str, Field]] = MappingProxyType(
    {
        "ModelRateLimiter": _fields(
            "repeated ModelRateLimiter.Resource resources",
            "uint32 priority",
        ),
        "ModelRateLimiter.Resource": _fields(
            "string name",
            "bool global",
            "uint32 count",
        ),
        "ModelInstanceGroup": _fields(
            "string name",
            "ModelInstanceGroup.Kind kind",
            "int32 count",
            "ModelRateLimiter rate_limiter",
            "repeated int32 gpus",
            "repeated ModelInstanceGroup.SecondaryDevice secondary_devices",
            "repeated string profile",
            "bool passive",
            "string host_policy",
        ),
        "ModelInstanceGroup.SecondaryDevice": _fields(
            "ModelInstanceGroup.SecondaryDevice.SecondaryDeviceKind kind",
            "int64 device_id",
        ),
        "ModelTensorReshape": _fields(
            "repeated int64 shape",
        ),
        "ModelInput": _fields(
            "string name",
            "DataType data_type",
            "ModelInput.Format format",
            "repeated int64 dims",
            "ModelTensorReshape reshape",
            "bool is_shape_tensor",
            "bool allow_ragged_batch",
            "bool optional",
            "bool is_non_linear_format_io",
        ),
        "ModelOutput": _fields(
            "string name",
            "DataType data_type",
            "repeated int64 dims",
            "ModelTensorReshape reshape",
            "string label_filename",
            "bool is_shape_tensor",
            "bool is_non_linear_format_io",
        ),
        "BatchInput": _fields(
            "BatchInput.Kind kind",
            "repeated string target_name",
            "DataType data_type",
            "repeated string source_input",
        ),
        "BatchOutput": _fields(
            "repeated string target_name",
            "BatchOutput.Kind kind",
            "repeated string source_input",
        ),
        "ModelVersionPolicy": _fields(
            "oneof policy_choice ModelVersionPolicy.Latest latest",
            "oneof policy_choice ModelVersionPolicy.All all",
            "oneof policy_choice ModelVersionPolicy.Specific specific",
        ),
        "ModelVersionPolicy.Latest": _fields(
            "uint32 num_versions",
        ),
        "ModelVersionPolicy.All": _fields(),
        "ModelVersionPolicy.Specific": _fields(
            "repeated int64 versions",
        ),
        "ModelOptimizationPolicy": _fields(
            "ModelOptimizationPolicy.Graph graph",
            "ModelOptimizationPolicy.ModelPriority priority",
            "ModelOptimizationPolicy.Cuda cuda",
            "ModelOptimizationPolicy.ExecutionAccelerators execution_accelerators",
            "ModelOptimizationPolicy.PinnedMemoryBuffer input_pinned_memory",
            "ModelOptimizationPolicy.PinnedMemoryBuffer output_pinned_memory",
            "uint32 gather_kernel_buffer_threshold",
            "bool eager_batching",
        ),
        "ModelOptimizationPolicy.Graph": _fields(
            "int32 level",
        ),
        "ModelOptimizationPolicy.Cuda": _fields(
            "bool graphs",
            "bool busy_wait_events",
            "repeated ModelOptimizationPolicy.Cuda.GraphSpec graph_spec",
            "bool output_copy_stream",
        ),
        "ModelOptimizationPolicy.Cuda.GraphSpec": _fields(
            "int32 batch_size",
            "map<string, ModelOptimizationPolicy.Cuda.GraphSpec.Shape> input",
            "ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound graph_lower_bound",
        ),
        "ModelOptimizationPolicy.Cuda.GraphSpec.Shape": _fields(
            "repeated int64 dim",
        ),
        "ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound": _fields(
            "int32 batch_size",
            "map<string, ModelOptimizationPolicy.Cuda.GraphSpec.Shape> input",
        ),
        "ModelOptimizationPolicy.ExecutionAccelerators": _fields(
            "repeated ModelOptimizationPolicy.ExecutionAccelerators.Accelerator gpu_execution_accelerator",
            "repeated ModelOptimizationPolicy.ExecutionAccelerators.Accelerator cpu_execution_accelerator",
        ),
        "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator": _fields(
            "string name",
            "map<string, string> parameters",
        ),
        "ModelOptimizationPolicy.PinnedMemoryBuffer": _fields(
            "bool enable",
        ),
        "ModelQueuePolicy": _fields(
            "ModelQueuePolicy.TimeoutAction timeout_action",
            "uint64 default_timeout_microseconds",
            "bool allow_timeout_override",
            "uint32 max_queue_size",
        ),
        "ModelDynamicBatching": _fields(
            "repeated int32 preferred_batch_size",
            "uint64 max_queue_delay_microseconds",
            "bool preserve_ordering",
            "uint64 priority_levels",
            "uint64 default_priority_level",
            "ModelQueuePolicy default_queue_policy",
            "map<uint64, ModelQueuePolicy> priority_queue_policy",
        ),
        "ModelSequenceBatching": _fields(
            "oneof strategy_choice ModelSequenceBatching.StrategyDirect direct",
            "oneof strategy_choice ModelSequenceBatching.StrategyOldest oldest",
            "uint64 max_sequence_idle_microseconds",
            "repeated ModelSequenceBatching.ControlInput control_input",
            "repeated ModelSequenceBatching.State state",
            "bool iterative_sequence",
        ),
        "ModelSequenceBatching.Control": _fields(
            "ModelSequenceBatching.Control.Kind kind",
            "repeated int32 int32_false_true",
            "repeated float fp32_false_true",
            "repeated bool bool_false_true",
            "DataType data_type",
        ),
        "ModelSequenceBatching.ControlInput": _fields(
            "string name",
            "repeated ModelSequenceBatching.Control control",
        ),
        "ModelSequenceBatching.InitialState": _fields(
            "DataType data_type",
            "repeated int64 dims",
            "oneof state_data bool zero_data",
            "oneof state_data string data_file",
            "string name",
        ),
        "ModelSequenceBatching.State": _fields(
            "string input_name",
            "string output_name",
            "DataType data_type",
            "repeated int64 dims",
            "repeated ModelSequenceBatching.InitialState initial_state",
            "bool use_same_buffer_for_input_output",
            "bool use_growable_memory",
        ),
        "ModelSequenceBatching.StrategyDirect": _fields(
            "uint64 max_queue_delay_microseconds",
            "float minimum_slot_utilization",
        ),
        "ModelSequenceBatching.StrategyOldest": _fields(
            "int32 max_candidate_sequences",
            "repeated int32 preferred_batch_size",
            "uint64 max_queue_delay_microseconds",
            "bool preserve_ordering",
        ),
        "ModelEnsembling": _fields(
            "repeated ModelEnsembling.Step step",
            "uint32 max_inflight_requests",
        ),
        "ModelEnsembling.Step": _fields(
            "string model_name",
            "int64 model_version",
            "map<string, string> input_map",
            "map<string, string> output_map",
            "string model_namespace",
        ),
        "ModelParameter": _fields(
            "string string_value",
        ),
        "ModelWarmup": _fields(
            "string name",
            "uint32 batch_size",
            "map<string, ModelWarmup.Input> inputs",
            "uint32 count",
        ),
        "ModelWarmup.Input": _fields(
            "DataType data_type",
            "repeated int64 dims",
            "oneof input_data_type bool zero_data",
            "oneof input_data_type bool random_data",
            "oneof input_data_type string input_data_file",
        ),
        "ModelOperations": _fields(
            "repeated string op_library_filename",
        ),
        "ModelTransactionPolicy": _fields(
            "bool decoupled",
        ),
        "ModelRepositoryAgents": _fields(
            "repeated ModelRepositoryAgents.Agent agents",
        ),
        "ModelRepositoryAgents.Agent": _fields(
            "string name",
            "map<string, string> parameters",
        ),
        "ModelResponseCache": _fields(
            "bool enable",
        ),
        "ModelMetrics": _fields(
            "repeated ModelMetrics.MetricControl metric_control",
        ),
        "ModelMetrics.MetricControl": _fields(
            "ModelMetrics.MetricControl.MetricIdentifier metric_identifier",
            "oneof metric_options ModelMetrics.MetricControl.HistogramOptions histogram_options",
        ),
        "ModelMetrics.MetricControl.MetricIdentifier": _fields(
            "string family",
        ),
        "ModelMetrics.MetricControl.HistogramOptions": _fields(
            "repeated double buckets",
        ),
        "ModelConfig": _fields(
            "string name",
            "string platform",
            "string backend",
            "string runtime",
            "ModelVersionPolicy version_policy",
            "int32 max_batch_size",
            "repeated ModelInput input",
            "repeated ModelOutput output",
            "repeated BatchInput batch_input",
            "repeated BatchOutput batch_output",
            "ModelOptimizationPolicy optimization",
            "oneof scheduling_choice ModelDynamicBatching dynamic_batching",
            "oneof scheduling_choice ModelSequenceBatching sequence_batching",
            "oneof scheduling_choice ModelEnsembling ensemble_scheduling",
            "repeated ModelInstanceGroup instance_group",
            "string default_model_filename",
            "map<string, string> cc_model_filenames",
            "map<string, string> metric_tags",
            "map<string, ModelParameter> parameters",
            "repeated ModelWarmup model_warmup",
            "ModelOperations model_operations",
            "ModelTransactionPolicy model_transaction_policy",
            "ModelRepositoryAgents model_repository_agents",
            "ModelResponseCache response_cache",
            "ModelMetrics model_metrics",
        ),
    }
)
"""Message -> its fields, in the order of the source. No message holds itself, so depth is bounded."""
