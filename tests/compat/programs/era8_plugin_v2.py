"""A plugin of version 2 with its creator, through the registry and a serialized engine."""

import ctypes
import struct

import numpy as np
import pycuda.autoinit  # noqa: F401
import pycuda.driver as cuda
import tensorrt as trt

LOGGER = trt.Logger(trt.Logger.ERROR)


def view(address, shape):
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class Power(trt.IPluginV2DynamicExt):
    def __init__(self, exponent):
        trt.IPluginV2DynamicExt.__init__(self)
        self.num_outputs = 1
        self.plugin_type = "Power"
        self.plugin_version = "1"
        self.plugin_namespace = ""
        self.exponent = exponent

    def get_output_datatype(self, index, input_types):
        return input_types[0]

    def get_output_dimensions(self, output_index, inputs, exprBuilder):
        return trt.DimsExprs(inputs[0])

    def serialize(self):
        return struct.pack("f", self.exponent)

    def configure_plugin(self, inp, out):
        self.rank = len(inp[0].desc.dims)

    def supports_format_combination(self, pos, in_out, num_inputs):
        return in_out[pos].type == trt.float32 and in_out[pos].format == trt.TensorFormat.LINEAR

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        shape = tuple(input_desc[0].dims)
        view(outputs[0], shape)[...] = view(inputs[0], shape) ** self.exponent

    def clone(self):
        return Power(self.exponent)


class PowerCreator(trt.IPluginCreator):
    def __init__(self):
        trt.IPluginCreator.__init__(self)
        self.name = "Power"
        self.plugin_version = "1"
        self.plugin_namespace = ""
        self.field_names = trt.PluginFieldCollection(
            [trt.PluginField("exponent", np.array([]), trt.PluginFieldType.FLOAT32)])

    def create_plugin(self, name, fc):
        return Power(float(fc[0].data[0]))

    def deserialize_plugin(self, name, data):
        return Power(struct.unpack("f", data)[0])


registry = trt.get_plugin_registry()
assert registry.register_creator(PowerCreator(), "")
creator = registry.get_plugin_creator("Power", "1", "")
assert creator in registry.plugin_creator_list
plugin = creator.create_plugin("p", trt.PluginFieldCollection(
    [trt.PluginField("exponent", np.array([3], np.float32), trt.PluginFieldType.FLOAT32)]))

builder = trt.Builder(LOGGER)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
x = network.add_input("x", trt.float32, (2, 5))
layer = network.add_plugin_v2([x], plugin)
network.mark_output(layer.get_output(0))
plan = builder.build_serialized_network(network, builder.create_builder_config())
engine = trt.Runtime(LOGGER).deserialize_cuda_engine(plan)
context = engine.create_execution_context()
data = np.arange(10, dtype=np.float32).reshape(2, 5)
out = np.empty_like(data)
d_in, d_out = cuda.to_device(data), cuda.mem_alloc(out.nbytes)
assert context.execute_v2([int(d_in), int(d_out)])
cuda.memcpy_dtoh(out, d_out)
np.testing.assert_allclose(out, data**3, rtol=1e-5)
print("OK")
