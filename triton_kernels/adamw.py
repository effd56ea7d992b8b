"""Adam's moments, weight decay and the update of the parameter: csrc/step/adamw.h."""

import triton
import triton.language as tl

from .columns import (
    BETA1_WEIGHT,
    BETA2,
    BETA2_WEIGHT,
    DENOM_SCALE,
    EPS,
    PARAM_SCALE,
    STEP_SIZE,
    WEIGHT_DECAY,
)


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


@triton.jit
def stepped(param, grad, exp_avg, exp_avg_sq, largest, numbers, COUPLED: tl.constexpr, AMSGRAD: tl.constexpr):
    """The new parameter, moments and, with AMSGRAD, largest second moment; `numbers`: the row of scalars."""
    param, grad = decayed(
        param, grad, tl.load(numbers + WEIGHT_DECAY), tl.load(numbers + PARAM_SCALE), COUPLED
    )
    exp_avg, exp_avg_sq = moments(
        grad,
        exp_avg,
        exp_avg_sq,
        tl.load(numbers + BETA1_WEIGHT),
        tl.load(numbers + BETA2),
        tl.load(numbers + BETA2_WEIGHT),
    )
    second_moment = exp_avg_sq
    if AMSGRAD:
        largest = largest_second_moment(largest, exp_avg_sq)
        second_moment = largest
    param = moved(
        param,
        exp_avg,
        second_moment,
        tl.load(numbers + STEP_SIZE),
        tl.load(numbers + DENOM_SCALE),
        tl.load(numbers + EPS),
    )
    return param, exp_avg, exp_avg_sq, largest
