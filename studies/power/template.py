"""What the fork server imports once for all workers, without starting CUDA."""

import diffusers  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import sdopt.pipelines.pipeline
import sdopt.weights.sd15  # noqa: F401
from studies.power.forking import refuse_started_cuda

refuse_started_cuda()
