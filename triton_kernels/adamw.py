"""Adam's moments, weight decay and the update of the parameter: csrc/step/adamw.h."""

import triton
import triton.language as tl


@triton.jit
def largest_second_moment(largest, current):
    # A NaN in either is kept.
    return tl.where((current <= largest) | (largest != largest), largest, current)


@triton.jit
def decayed(param, grad, weight_decay, param_scale, COUPLED: tl.constexpr):
    if COUPLED:
        grad = grad + weight_decay * param
    else:
        param = param * param_scale
    return param, grad


@triton.jit
def moments(grad, exp_avg, exp_avg_sq, beta1_weight, beta2, beta2_weight):
    exp_avg = exp_avg + beta1_weight * (grad - exp_avg)
    exp_avg_sq = beta2 * exp_avg_sq + beta2_weight * grad * grad
    return exp_avg, exp_avg_sq


@triton.jit
def moved(param, exp_avg, second_moment, step_size, denom_scale, eps):
    denom = tl.sqrt_rn(second_moment) * denom_scale + eps
    return param - tl.div_rn(step_size * exp_avg, denom)
