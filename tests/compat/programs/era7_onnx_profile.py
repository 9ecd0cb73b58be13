"""An ONNX model with a dynamic batch: build_engine, profiles, bindings (TensorRT 7)."""

import sys

import numpy as np
import pycuda.autoinit  # noqa: F401
import pycuda.driver as cuda
import tensorrt as trt

TRT_LOGGER = trt.Logger(trt.Logger.ERROR)
EXPLICIT_BATCH = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
model, plan_file = sys.argv[1], sys.argv[2]

with trt.Builder(TRT_LOGGER) as builder, builder.create_network(EXPLICIT_BATCH) as network, \
        trt.OnnxParser(network, TRT_LOGGER) as parser:
    with open(model, "rb") as f:
        if not parser.parse(f.read()):
            for i in range(parser.num_errors):
                print(parser.get_error(i))
            sys.exit(1)
    config = builder.create_builder_config()
    config.max_workspace_size = 1 << 28
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, (1, 1, 28, 28), (4, 1, 28, 28), (8, 1, 28, 28))
    config.add_optimization_profile(profile)
    engine = builder.build_engine(network, config)
with open(plan_file, "wb") as f:
    f.write(engine.serialize())

with open(plan_file, "rb") as f, trt.Runtime(TRT_LOGGER) as runtime:
    engine = runtime.deserialize_cuda_engine(f.read())
assert engine.num_bindings == 2 and engine.num_optimization_profiles == 1
context = engine.create_execution_context()
stream = cuda.Stream()
for n in (1, 3, 8):
    x = np.random.default_rng(n).random((n, 1, 28, 28), np.float32)
    context.set_binding_shape(0, x.shape)
    assert context.all_binding_shapes_specified
    y = np.empty(tuple(context.get_binding_shape(1)), np.float32)
    d_x, d_y = cuda.mem_alloc(x.nbytes), cuda.mem_alloc(y.nbytes)
    cuda.memcpy_htod_async(d_x, x, stream)
    context.execute_async_v2([int(d_x), int(d_y)], stream.handle)
    cuda.memcpy_dtoh_async(y, d_y, stream)
    stream.synchronize()
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-4)
    np.save(f"{plan_file}.{n}.npy", y)
print("OK")
