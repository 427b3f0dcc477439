// The processor: how code is compiled for several kinds of it, and which kind runs the program.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define QSR_X86 1
#define QSR_HAS(feature) (__builtin_cpu_supports(feature) != 0)
#else
#define QSR_X86 0
#define QSR_HAS(feature) false
#endif

// Vectors wider than the target's registers never cross a call: what handles them is inlined.
#define QSR_INLINE __attribute__((always_inline)) inline
#define QSR_INLINED __attribute__((always_inline))  // after the parameters of a lambda

// One function, compiled three times; the processor's copy is picked when the library is loaded,
// which is before ThreadSanitizer can watch anything: it would crash.
#if QSR_X86 && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define QSR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define QSR_CLONES
#endif

namespace qsr {

inline bool anywhere() { return true; }
// Not x86: false, because there the compiler's count of bits is already the best there is.
inline bool has_popcnt() { return QSR_HAS("popcnt"); }
inline bool has_avx2() { return QSR_HAS("avx2"); }
inline bool has_fma() { return has_avx2() && QSR_HAS("fma"); }
inline bool has_avx512() { return QSR_HAS("avx512f"); }
// All processors with VNNI have bw, vl and dq too, so the rows that need some of them ask for all.
inline bool has_vnni() {
  return has_avx512() && QSR_HAS("avx512bw") && QSR_HAS("avx512vl") && QSR_HAS("avx512dq") &&
         QSR_HAS("avx512vnni");
}
inline bool has_vpopcnt() { return has_avx512() && QSR_HAS("avx512vpopcntdq"); }
inline bool has_bf16() { return has_avx512() && QSR_HAS("avx512bf16"); }

// What a row of every table of kernels has (dispatch.cpp); what it computes, its own type says.
struct Row {
  const char* name;
  bool (*supported)();  // by this processor
};

}  // namespace qsr
