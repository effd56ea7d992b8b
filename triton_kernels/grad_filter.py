"""How the gradient's slow part is amplified before Adam sees it: csrc/step/grad_filter.h."""

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it in every module)


@triton.jit
def ema(grad, grad_ema, alpha, alpha_weight, lamb):
    grad_ema = alpha * grad_ema + alpha_weight * grad
    return grad + lamb * grad_ema, grad_ema
