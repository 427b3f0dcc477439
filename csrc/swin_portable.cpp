// Swin layers on any processor: the definition, in the compiler's own vectors. Exact for all bytes.
#include "swin.h"

#include <cmath>
#include <cstring>
#include <new>

#include "conv3x3.h"

namespace qsr {
namespace {

#include "finish.h"

constexpr int kVectors = 1, kSideBySide = 1;
typedef Vector<kRowLanes>::Int Int;
typedef Vector<kRowLanes>::Float Float;

QSR_INLINE Float larger(Float a, Float b) { return a > b ? a : b; }
QSR_INLINE Float smaller(Float a, Float b) { return a < b ? a : b; }

QSR_INLINE Int dot(Int sum, const uint8_t* four, const int8_t* weights) {
  for (int l = 0; l < kRowLanes; ++l, weights += 4)
    sum[l] += four[0] * weights[0] + four[1] * weights[1] + four[2] * weights[2] + four[3] * weights[3];
  return sum;
}

#include "swin_kernel.h"

bool anywhere() { return true; }

}  // namespace

const SwinKernel kSwinPortable = {"portable", anywhere, 16, layer, attention, norm};

}  // namespace qsr
