"""The columns of the kernel's two tables: what csrc/step/scalars.h and csrc/step/slice.h are in C++."""

import triton.language as tl

# Of scalars, one row a group and step.
STEP, GRAD_FACTOR, ALPHA, ALPHA_WEIGHT, LAMB, WEIGHT_DECAY, PARAM_SCALE = (tl.constexpr(k) for k in range(7))
BETA1_WEIGHT, BETA2, BETA2_WEIGHT, STEP_SIZE, DENOM_SCALE, EPS = (tl.constexpr(k) for k in range(7, 13))
ROW = tl.constexpr(13)
# Of slices, one row a tensor: where its arrays lie (0: nowhere), and what else there is to know of it.
# Those of the filters (grad_filter.py) come after these.
MASK_AT, STEP_AT, MASK_MODE, SIZE, IS_ALIGNED = (tl.constexpr(k) for k in range(5))
ARRAYS = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "kahan_comp", "block_bases")
PARAM_AT, GRAD_AT, EXP_AVG_AT, EXP_AVG_SQ_AT, MAX_EXP_AVG_SQ_AT, KAHAN_COMP_AT, BLOCK_BASES_AT, FILTERS_AT = (
    tl.constexpr(k) for k in range(5, 13)
)
