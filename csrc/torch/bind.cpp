// qsr._C: facts about the build and the processor, through pybind11, without any torch header.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <thread>

#include "format.h"

#define QSR_STRING(x) #x
#define QSR_QUOTE(x) QSR_STRING(x)
extern "C" __attribute__((used)) const char qsr_source_hash_c[] =
    "qsr-source-hash:" QSR_QUOTE(QSR_SOURCE_HASH);

namespace {

std::map<std::string, bool> cpu_features() {
#if defined(__x86_64__) && defined(__GNUC__)
  return {{"popcnt", __builtin_cpu_supports("popcnt") != 0},
          {"avx2", __builtin_cpu_supports("avx2") != 0},
          {"fma", __builtin_cpu_supports("fma") != 0},
          {"avx512f", __builtin_cpu_supports("avx512f") != 0},
          {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0}};
#else
  return {};
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about qsr's native build and this processor.";
  m.def("cpu_features", &cpu_features, "Instruction set extensions that kernels ask for.");
  m.def("hardware_threads", [] { return std::thread::hardware_concurrency(); });
  m.attr("compiler") = __VERSION__;
  m.attr("format_version") = qsr::kFormatVersion;
}
