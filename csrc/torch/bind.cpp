// qsr._C: what an operator cannot say in a string, through pybind11, without any torch header.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <thread>

#include "cpu.h"

#define QSR_STRING(x) #x
#define QSR_QUOTE(x) QSR_STRING(x)
extern "C" __attribute__((used)) const char qsr_source_hash_c[] =
    "qsr-source-hash:" QSR_QUOTE(QSR_SOURCE_HASH);

namespace {

struct Processor {
  std::map<std::string, bool> features;  // instruction set extensions, and whether they are there
  unsigned threads = std::thread::hardware_concurrency();
};

Processor processor() {
  Processor here;
#if QSR_X86
  here.features = {{"popcnt", QSR_HAS("popcnt")},
                   {"avx2", QSR_HAS("avx2")},
                   {"fma", QSR_HAS("fma")},
                   {"avx512f", QSR_HAS("avx512f")},
                   {"avx512vnni", QSR_HAS("avx512vnni")}};
#endif
  return here;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about this processor.";
  pybind11::class_<Processor>(m, "Processor")
      .def_readonly("features", &Processor::features, "{instruction set extension: is it there}")
      .def_readonly("threads", &Processor::threads, "how many the hardware runs at once");
  m.def("processor", &processor);
}
