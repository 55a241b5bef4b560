"""Messages of `inference.GRPCInferenceService`, built when the module is imported.

Generated code would bind us to the protobuf release that generated it: it refuses older runtimes, and those of the next
major release but one. Descriptors are data that every release since 4 reads, so the table below, with the field numbers
of the protocol, takes the place of a `.proto` and of what `protoc` makes of it. They live in a pool of their own, so
that a client's generated classes of the same names may be in the same process.

Source: kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto;
triton-inference-server/common, protobuf/grpc_service.proto and model_config.proto (of the latter, the fields that are
filled here).
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["DATA_TYPES", "PACKAGE", "message_class"]

PACKAGE = "inference"

# A field a line: name, number, type; * is repeated, {} a map from texts to that message, | a member of the one oneof.
_TABLE = """
ServerLiveRequest
ServerLiveResponse
  live 1 bool
ServerReadyRequest
ServerReadyResponse
  ready 1 bool
ModelReadyRequest
  name 1 string
  version 2 string
ModelReadyResponse
  ready 1 bool
ServerMetadataRequest
ServerMetadataResponse
  name 1 string
  version 2 string
  extensions 3 string*
ModelMetadataRequest
  name 1 string
  version 2 string
TensorMetadata
  name 1 string
  datatype 2 string
  shape 3 int64*
ModelMetadataResponse
  name 1 string
  versions 2 string*
  platform 3 string
  inputs 4 TensorMetadata*
  outputs 5 TensorMetadata*
InferParameter
  bool_param 1 bool|
  int64_param 2 int64|
  string_param 3 string|
  double_param 4 double|
  uint64_param 5 uint64|
InferTensorContents
  bool_contents 1 bool*
  int_contents 2 int32*
  int64_contents 3 int64*
  uint_contents 4 uint32*
  uint64_contents 5 uint64*
  fp32_contents 6 float*
  fp64_contents 7 double*
  bytes_contents 8 bytes*
InferInputTensor
  name 1 string
  datatype 2 string
  shape 3 int64*
  parameters 4 InferParameter{}
  contents 5 InferTensorContents
InferRequestedOutputTensor
  name 1 string
  parameters 2 InferParameter{}
ModelInferRequest
  model_name 1 string
  model_version 2 string
  id 3 string
  parameters 4 InferParameter{}
  inputs 5 InferInputTensor*
  outputs 6 InferRequestedOutputTensor*
  raw_input_contents 7 bytes*
InferOutputTensor
  name 1 string
  datatype 2 string
  shape 3 int64*
  parameters 4 InferParameter{}
  contents 5 InferTensorContents
ModelInferResponse
  model_name 1 string
  model_version 2 string
  id 3 string
  parameters 4 InferParameter{}
  outputs 5 InferOutputTensor*
  raw_output_contents 6 bytes*
All
ModelVersionPolicy
  all 2 All
ModelInput
  name 1 string
  data_type 2 int32
  format 3 int32
  dims 4 int64*
  optional 8 bool
ModelOutput
  name 1 string
  data_type 2 int32
  dims 3 int64*
  label_filename 4 string
ModelDynamicBatching
  max_queue_delay_microseconds 2 uint64
ModelConfig
  name 1 string
  platform 2 string
  version_policy 3 ModelVersionPolicy
  max_batch_size 4 int32
  input 5 ModelInput*
  output 6 ModelOutput*
  dynamic_batching 11 ModelDynamicBatching
  backend 17 string
ModelConfigRequest
  name 1 string
  version 2 string
ModelConfigResponse
  config 1 ModelConfig
StatisticDuration
  count 1 uint64
  ns 2 uint64
InferStatistics
  success 1 StatisticDuration
  fail 2 StatisticDuration
  queue 3 StatisticDuration
  compute_input 4 StatisticDuration
  compute_infer 5 StatisticDuration
  compute_output 6 StatisticDuration
  cache_hit 7 StatisticDuration
  cache_miss 8 StatisticDuration
InferBatchStatistics
  batch_size 1 uint64
  compute_input 2 StatisticDuration
  compute_infer 3 StatisticDuration
  compute_output 4 StatisticDuration
ModelStatistics
  name 1 string
  version 2 string
  last_inference 3 uint64
  inference_count 4 uint64
  execution_count 5 uint64
  inference_stats 6 InferStatistics
  batch_stats 7 InferBatchStatistics*
ModelStatisticsRequest
  name 1 string
  version 2 string
ModelStatisticsResponse
  model_stats 1 ModelStatistics*
ModelIndex
  name 1 string
  version 2 string
  state 3 string
  reason 4 string
RepositoryIndexRequest
  repository_name 1 string
  ready 2 bool
RepositoryIndexResponse
  models 1 ModelIndex*
ModelRepositoryParameter
  bool_param 1 bool|
  int64_param 2 int64|
  string_param 3 string|
  bytes_param 4 bytes|
RepositoryModelLoadRequest
  repository_name 1 string
  model_name 2 string
  parameters 3 ModelRepositoryParameter{}
RepositoryModelLoadResponse
RepositoryModelUnloadRequest
  repository_name 1 string
  model_name 2 string
  parameters 3 ModelRepositoryParameter{}
RepositoryModelUnloadResponse
"""

_KINDS = "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16"
DATA_TYPES: dict[str, int] = {f"TYPE_{name}": number for number, name in enumerate(_KINDS.split())}
"""Names of the configuration's data types → their numbers; an enumeration travels as an int32 does."""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: dict[str, int] = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
}


def _read_table() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="edgesmith/inference.proto", package=PACKAGE, syntax="proto3")
    message: Any = None
    for line in _TABLE.strip().splitlines():
        if not line.startswith(" "):
            message = file.message_type.add(name=line)
            continue
        name, number, kind = line.split()
        if kind.endswith("{}"):
            _add_map(message, name, int(number), kind.removesuffix("{}"))
            continue
        field = _add_field(message, name, int(number), kind.rstrip("*|"), is_repeated=kind.endswith("*"))
        if kind.endswith("|"):
            if not message.oneof_decl:
                message.oneof_decl.add(name="parameter_choice")
            field.oneof_index = 0
    return file


def _add_field(message: Any, name: str, number: int, kind: str, *, is_repeated: bool) -> Any:
    label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, kind if kind.startswith(".") else f".{PACKAGE}.{kind}"
    return field


def _add_map(message: Any, name: str, number: int, kind: str) -> None:
    """Add a map as protobuf has it: a repeated message of key and value."""
    entry = message.nested_type.add(name=f"{name.title()}Entry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, "string", is_repeated=False)
    _add_field(entry, "value", 2, kind, is_repeated=False)
    _add_field(message, name, number, f".{PACKAGE}.{message.name}.{entry.name}", is_repeated=True)


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_read_table().SerializeToString())


def message_class(name: str) -> Any:
    """The class of a message.

    Raises:
        KeyError: There is none of that name.
    """
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
