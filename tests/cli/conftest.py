"""Commands run here on tiny models; more than one thread would only wait for the other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
