"""What gRPC's own client of reflection finds at a server: `reflection.py ADDRESS`.

It then calls the server by nothing but the description that it got there.
"""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

with grpc.insecure_channel(sys.argv[1]) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services, services
    print("ok services", flush=True)
    service = descriptor_pool.DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
    for name in ("ServerLive", "ModelInfer", "ModelStreamInfer", "RepositoryModelUnload"):
        assert service.FindMethodByName(name) is not None, name
    print("ok methods", flush=True)

    def call(called, /, **fields):
        method = service.FindMethodByName(called)
        question, answer = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        stub = channel.unary_unary(
            f"/{service.full_name}/{called}",
            request_serializer=question.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return stub(question(**fields))

    assert call("ServerLive").live
    assert [tensor.name for tensor in call("ModelMetadata", name="echo").inputs] == ["x"]
    print("ok calls", flush=True)
