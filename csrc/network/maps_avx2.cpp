// The ways in and out of maps on AVX2.
#include "cpu.h"
#include "network/maps.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx2")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX2
#include "network/finish.h"
constexpr int kLanes = 8, kFinishLanes = 8;
#include "network/maps_kernel.h"

}  // namespace

const MapsKernel kMapsAvx2 = {"avx2", has_avx2, quantize, quantize_planes,
                               to_planes, finish_rows, element};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const MapsKernel kMapsAvx2 = {"avx2", has_avx2, nullptr, nullptr, nullptr,
                               nullptr, nullptr};
}  // namespace qsr

#endif
