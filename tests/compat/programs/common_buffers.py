"""Helpers in the manner of TensorRT 7's and 8's samples: buffers for every binding."""

import pycuda.autoinit  # noqa: F401
import pycuda.driver as cuda
import tensorrt as trt


class HostDeviceMem:
    def __init__(self, host, device):
        self.host = host
        self.device = device


def allocate_buffers(engine):
    inputs, outputs, bindings = [], [], []
    stream = cuda.Stream()
    for binding in engine:
        size = trt.volume(engine.get_binding_shape(binding)) * max(engine.max_batch_size, 1)
        dtype = trt.nptype(engine.get_binding_dtype(binding))
        host = cuda.pagelocked_empty(size, dtype)
        device = cuda.mem_alloc(host.nbytes)
        bindings.append(int(device))
        if engine.binding_is_input(binding):
            inputs.append(HostDeviceMem(host, device))
        else:
            outputs.append(HostDeviceMem(host, device))
    return inputs, outputs, bindings, stream


def do_inference(context, bindings, inputs, outputs, stream, batch_size=1):
    for i in inputs:
        cuda.memcpy_htod_async(i.device, i.host, stream)
    context.execute_async(batch_size=batch_size, bindings=bindings, stream_handle=stream.handle)
    for o in outputs:
        cuda.memcpy_dtoh_async(o.host, o.device, stream)
    stream.synchronize()
    return [o.host for o in outputs]


def do_inference_v2(context, bindings, inputs, outputs, stream):
    for i in inputs:
        cuda.memcpy_htod_async(i.device, i.host, stream)
    context.execute_async_v2(bindings=bindings, stream_handle=stream.handle)
    for o in outputs:
        cuda.memcpy_dtoh_async(o.host, o.device, stream)
    stream.synchronize()
    return [o.host for o in outputs]
