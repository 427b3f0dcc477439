// The way out of a Swin block: x = shortcut * residual + conv3x3(codes of x), on a stream of maps.
#pragma once
#include "network/conv3x3.h"

namespace qsr {

// Rows [first, last) of float32 [height, width, channels] -> the codes of a framed map (conv3x3.h);
// tau, step, low and high are those of `finish`. The frame is not touched.
void quantize_map(const float* x, const Finish& finish, int64_t first, int64_t last);

}  // namespace qsr
