// What one core can do at most, to hold a kernel's speed against. Each row runs the instruction, or
// the pair, that an inner loop cannot do without, on registers alone.
//
// Enough independent sums run side by side to hide the latency. Empty asm statements make the
// compiler believe that operands and sums change, so that nothing is hoisted or removed.
#include <chrono>
#include <cstring>

#include "cpu.h"
#include "kernels.h"

#if QSR_X86
#include <immintrin.h>
#endif

namespace qsr {
namespace {

struct Peak {
  const char* name;
  bool (*supported)();
  int64_t (*run)(int64_t steps);  // returns the multiply-accumulates done
};

#if QSR_X86

// SUMS sums of TYPE; STEP is the new value of `sum` from `a` and `b`, LANES products each.
#define QSR_PEAK(NAME, TARGET, TYPE, REGISTER, SUMS, LANES, STEP) \
  __attribute__((target(TARGET))) int64_t NAME(int64_t steps) {   \
    TYPE a{}, b{}, sums[SUMS] = {};                               \
    for (int64_t i = 0; i < steps; ++i) {                         \
      asm volatile("" : "+" REGISTER(a), "+" REGISTER(b));        \
      _Pragma("GCC unroll 16") for (int k = 0; k < SUMS; ++k) {   \
        TYPE& sum = sums[k];                                      \
        sum = STEP;                                               \
        asm volatile("" : "+" REGISTER(sum));                     \
      }                                                           \
    }                                                             \
    return steps * SUMS * LANES;                                  \
  }

// A dependent addition takes one cycle, so the rate of a chain is the frequency of the core.
inline int64_t chain(int64_t sum, int64_t a) {
#pragma GCC unroll 64
  for (int i = 0; i < 64; ++i) {
    sum += a;
    asm volatile("" : "+r"(sum));
  }
  return sum;
}
QSR_PEAK(run_clock, "sse2", int64_t, "r", 1, 64, chain(sum, a))
QSR_PEAK(run_fma, "avx2,fma", __m256, "x", 12, 8, _mm256_fmadd_ps(a, b, sum))
QSR_PEAK(run_fma512, "avx512f", __m512, "v", 12, 16, _mm512_fmadd_ps(a, b, sum))
QSR_PEAK(run_bf16, "avx512f,avx512bf16", __m512, "v", 12, 32,
         _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b))
// The empty asm of the operands is once a step, so products of equal operands would be shared:
// the sums take part in them.
QSR_PEAK(run_maddubs, "avx2", __m256i, "x", 12, 32,
         _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, sum)))
QSR_PEAK(run_dpbusd, "avx512f,avx512vnni", __m512i, "v", 12, 64, _mm512_dpbusd_epi32(sum, a, b))
QSR_PEAK(run_popcnt, "popcnt", int64_t, "r", 6, 64, sum + __builtin_popcountll(a & sum))
QSR_PEAK(run_vpopcnt, "avx512f,avx512vpopcntdq", __m512i, "v", 12, 512,
         _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_and_si512(a, sum))))
// A table of the products of two 2-bit weights with two 2-bit activations: 2 in each of 32 bytes.
QSR_PEAK(run_shufb, "avx2", __m256i, "x", 12, 64, _mm256_add_epi8(sum, _mm256_shuffle_epi8(a, sum)))

constexpr Peak kPeaks[] = {
    {"clock", anywhere, run_clock},        {"fma", has_fma, run_fma},
    {"fma512", has_avx512, run_fma512},    {"bf16", has_bf16, run_bf16},
    {"maddubs", has_avx2, run_maddubs},    {"dpbusd", has_vnni, run_dpbusd},
    {"shufb", has_avx2, run_shufb},        {"popcnt", has_popcnt, run_popcnt},
    {"vpopcnt", has_vpopcnt, run_vpopcnt},
};

#else

// Elsewhere only the frequency, as well as a compiler's loop shows it.
int64_t run_clock(int64_t steps) {
  volatile int64_t sum = 0;
  for (int64_t i = 0; i < steps; ++i) sum = sum + 1;
  return steps;
}
constexpr Peak kPeaks[] = {{"clock", anywhere, run_clock}};

#endif

}  // namespace

std::string peak_names() {
  std::string list;
  for (const Peak& row : kPeaks)
    if (row.supported()) list.append(list.empty() ? "" : ",").append(row.name);
  return list;
}

double peak(const char* name, double seconds) {
  using Clock = std::chrono::steady_clock;
  for (const Peak& row : kPeaks) {
    if (std::strcmp(row.name, name) != 0 || !row.supported()) continue;
    row.run(10000);
    double best = 0, spent = 0;
    while (spent < seconds) {  // the best of short stretches: others can only slow them
      const auto began = Clock::now();
      const auto done = static_cast<double>(row.run(100000));
      const double took = std::chrono::duration<double>(Clock::now() - began).count();
      if (done / took > best) best = done / took;
      spent += took;
    }
    return best;
  }
  return 0;
}

}  // namespace qsr
