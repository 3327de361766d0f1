// SPDX-License-Identifier: MIT
// The residual decoder with tf32 and bf16 operands.
#include "cuda/decode_kernels.h"

namespace occ::cuda {

OCC_ROUNDED_LAUNCHES()

}  // namespace occ::cuda
