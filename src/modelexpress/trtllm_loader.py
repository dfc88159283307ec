"""Checkpoints of TensorRT-LLM between nodes, under the module name by which callers import them.

The code is in `modelexpress.engines.trtllm`.
"""

from modelexpress.engines.trtllm.publisher import MxTrtllmSourcePublisher
from modelexpress.engines.trtllm.target import MxTrtllmTargetLoader, create_trtllm_from_mx

__all__ = ["MxTrtllmSourcePublisher", "MxTrtllmTargetLoader", "create_trtllm_from_mx"]
