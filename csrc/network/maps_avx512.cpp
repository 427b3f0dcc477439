// The ways in and out of maps on AVX-512.
#include "cpu.h"
#include "network/maps.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX512
#include "network/finish.h"
constexpr int kLanes = 16, kFinishLanes = 16;
#include "network/maps_kernel.h"

}  // namespace

const MapsKernel kMapsAvx512 = {"avx512", has_vnni, quantize, quantize_planes,
                               to_planes, finish_rows, element};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const MapsKernel kMapsAvx512 = {"avx512", has_vnni, nullptr, nullptr, nullptr,
                               nullptr, nullptr};
}  // namespace qsr

#endif
