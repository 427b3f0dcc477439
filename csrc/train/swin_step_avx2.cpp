// Swin layers for training on AVX2 and FMA: products in float32.
#include "cpu.h"
#include "train/swin_step.h"

#if QSR_X86
#include <new>
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include <immintrin.h>

namespace qsr {
namespace {

#include "vectors.h"

constexpr int kLanes = 8, kSums = 8;
typedef Vector<kLanes>::Float Lanes;
QSR_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
QSR_INLINE Lanes larger(Lanes a, Lanes b) { return _mm256_max_ps(a, b); }

#include "train/numbers.h"
#include "train/swin_step_kernel.h"

}  // namespace

const SwinStepKernel kSwinStepAvx2 = {"avx2", has_fma,       attention, attention_backward,
                                      norm,   norm_backward, gelu,      gelu_backward};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const SwinStepKernel kSwinStepAvx2 = {"avx2",  has_fma, nullptr, nullptr,
                                      nullptr, nullptr, nullptr, nullptr};
}  // namespace qsr

#endif
