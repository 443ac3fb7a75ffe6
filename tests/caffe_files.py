"""Caffe models in the format that Caffe saves, written by the protobuf library with the published schema."""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from vggrepro.models.vgg import VGG

# The part of caffe.proto that concerns weights: message -> (field, number, type); capitals mean "repeated".
SCHEMA = {
    "BlobShape": [("dim", 1, "INT64 packed")],
    "BlobProto": [
        ("num", 1, "int32"),
        ("channels", 2, "int32"),
        ("height", 3, "int32"),
        ("width", 4, "int32"),
        ("data", 5, "FLOAT packed"),
        ("diff", 6, "FLOAT packed"),
        ("shape", 7, "BlobShape"),
        ("double_data", 8, "DOUBLE packed"),
    ],
    "V0LayerParameter": [("name", 1, "string"), ("blobs", 50, "REPEATED BlobProto")],
    "V1LayerParameter": [
        ("layer", 1, "V0LayerParameter"),
        ("bottom", 2, "STRING"),
        ("top", 3, "STRING"),
        ("name", 4, "string"),
        ("type", 5, "int32"),
        ("blobs", 6, "REPEATED BlobProto"),
        ("blobs_lr", 7, "FLOAT"),
    ],
    "LayerParameter": [
        ("name", 1, "string"),
        ("type", 2, "string"),
        ("bottom", 3, "STRING"),
        ("top", 4, "STRING"),
        ("blobs", 7, "REPEATED BlobProto"),
    ],
    "NetParameter": [
        ("name", 1, "string"),
        ("layers", 2, "REPEATED V1LayerParameter"),
        ("input", 3, "STRING"),
        ("input_dim", 4, "INT32"),
        ("layer", 100, "REPEATED LayerParameter"),
    ],
}


@cache
def messages() -> dict[str, Any]:
    """Creates the message classes of the schema with the protobuf library."""
    field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(name="caffe_weights.proto", package="caffe", syntax="proto2")
    for message, fields in SCHEMA.items():
        described = proto.message_type.add(name=message)
        for name, number, text in fields:
            kind, _, packed = text.partition(" ")
            repeated = kind.isupper()
            described_field = described.field.add(name=name, number=number)
            described_field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            target = packed if kind == "REPEATED" else kind
            if target in SCHEMA:
                described_field.type, described_field.type_name = field.TYPE_MESSAGE, f".caffe.{target}"
            else:
                described_field.type = getattr(field, f"TYPE_{target.upper()}")
                described_field.options.packed = packed == "packed"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in SCHEMA}


def caffe_model(net: VGG, generation: str, *, numbers: str = "data") -> Any:
    """Builds the model that Caffe would have saved: BGR, with legacy blob shapes in the older generation."""
    model = messages()["NetParameter"](name="VGG_ILSVRC_16_layers", input=["data"], input_dim=[10, 3, 224, 224])
    for name, module in net.named_layers().items():
        kind = "Convolution" if name.startswith("conv") else "InnerProduct"
        if generation == "V1LayerParameter":
            layer = model.layers.add(name=name, type=4 if kind == "Convolution" else 14, top=[name], blobs_lr=[1, 2])
            model.layers.add(name=f"relu_{name}", type=18, bottom=[name], top=[name])
        else:
            layer = model.layer.add(name=name, type=kind, top=[name])
            model.layer.add(name=f"relu_{name}", type="ReLU", bottom=[name], top=[name])
        for tensor in (module.weight, module.bias):
            array = tensor.detach().numpy()
            array = array[:, ::-1] if name == "conv1_1" and array.ndim == 4 else array
            blob = layer.blobs.add()
            if generation == "V1LayerParameter":
                shape = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = shape
            else:
                blob.shape.dim.extend(array.shape)
            getattr(blob, numbers).extend(array.ravel().tolist())
    return model
