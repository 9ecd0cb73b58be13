"""``torch_tensorrt.dynamo``."""

from tactician.torch.trt.dynamo import *  # noqa: F403
