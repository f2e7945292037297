from .attention.api import flash_attention as flash_attention
from .attention.patterns import LocalPattern as LocalPattern
from .tiled_matmul.api import matmul_logsumexp as matmul_logsumexp
from .tiled_matmul.api import matmul_softplus_sum as matmul_softplus_sum
