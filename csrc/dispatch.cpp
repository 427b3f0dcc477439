// THE tables: which kernels there are, best first, and what each needs of the processor.
#include <cstring>

#include "network/conv3x3.h"
#include "kernels.h"
#include "network/tail.h"
#include "network/swin.h"

namespace qsr {
namespace {

bool anywhere() { return true; }

bool has_popcnt() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("popcnt");
#else
  return false;  // elsewhere the compiler's builtin is already the best there is
#endif
}

template <class Job>
bool anything(const Job&) {
  return true;
}

constexpr Kernel<Conv2d> kConv2d[] = {
    {"winograd-vnni", has_winograd_vnni, takes_winograd_vnni, conv2d_winograd_vnni},
    {"vpopcnt", has_vpopcnt, takes_vpopcnt, conv2d_vpopcnt},
    {"direct-vnni", has_direct_vnni, takes_direct_vnni, conv2d_direct_vnni},
    {"winograd-avx2", has_avx2, takes_winograd_avx2, conv2d_winograd_avx2},
    {"table", has_avx2, takes_table, conv2d_table},
    {"direct-avx2", has_avx2, takes_direct_avx2, conv2d_direct_avx2},
    {"popcnt", has_popcnt, anything<Conv2d>, conv2d_popcnt},
    {"scalar", anywhere, anything<Conv2d>, conv2d_scalar},
};

constexpr Kernel<QuantizePack> kQuantizePack[] = {
    {"scalar", anywhere, anything<QuantizePack>, quantize_pack_scalar},
};

constexpr const Conv3x3Kernel* kConv3x3[] = {&kConv3x3Vnni, &kConv3x3Avx2, &kConv3x3Portable};

constexpr const SwinKernel* kSwin[] = {&kSwinVnni, &kSwinAvx2, &kSwinPortable};

constexpr const TailKernel* kTail[] = {&kTailAvx512, &kTailAvx2, &kTailPortable};

template <class Job, size_t N>
const Kernel<Job>* find(const Kernel<Job> (&table)[N], const char* name, const Job& job) {
  bool reached = std::strcmp(name, "auto") == 0;
  for (const Kernel<Job>& row : table) {
    const bool named = std::strcmp(name, row.name) == 0;
    if (named && !row.supported()) return nullptr;
    reached = reached || named;
    if (reached && row.supported() && row.takes(job)) return &row;
  }
  return nullptr;
}

template <class Job, size_t N>
std::string names(const Kernel<Job> (&table)[N]) {
  std::string list;
  for (const Kernel<Job>& row : table)
    if (row.supported()) list += (list.empty() ? "" : ",") + std::string(row.name);
  return list;
}

}  // namespace

const Kernel<Conv2d>* find_conv2d(const char* name, const Conv2d& job) {
  return find(kConv2d, name, job);
}
const Kernel<QuantizePack>* find_quantize_pack(const char* name, const QuantizePack& job) {
  return find(kQuantizePack, name, job);
}

const Conv3x3Kernel* find_conv3x3(const char* name, int bits) {
  const bool any = std::strcmp(name, "auto") == 0;
  for (const Conv3x3Kernel* row : kConv3x3)
    if ((any || std::strcmp(name, row->name) == 0) && row->supported() && bits <= row->max_bits)
      return row;
  return nullptr;
}

const TailKernel* find_tail(const char* name) {
  for (const TailKernel* row : kTail)
    if (std::strcmp(name, row->name) == 0 && row->supported()) return row;
  return nullptr;
}

std::string tail_names() {
  std::string list;
  for (const TailKernel* row : kTail)
    if (row->supported()) list += (list.empty() ? "" : ",") + std::string(row->name);
  return list;
}

std::string conv3x3_names(int bits) {
  std::string list;
  for (const Conv3x3Kernel* row : kConv3x3)
    if (row->supported() && bits <= row->max_bits)
      list += (list.empty() ? "" : ",") + std::string(row->name);
  return list;
}

const SwinKernel* find_swin(const char* name, int bits) {
  const bool any = std::strcmp(name, "auto") == 0;
  for (const SwinKernel* row : kSwin)
    if ((any || std::strcmp(name, row->name) == 0) && row->supported() && bits <= row->max_bits)
      return row;
  return nullptr;
}

std::string swin_names(int bits) {
  std::string list;
  for (const SwinKernel* row : kSwin)
    if (row->supported() && bits <= row->max_bits)
      list += (list.empty() ? "" : ",") + std::string(row->name);
  return list;
}

std::string available(const char* op) {
  if (std::strcmp(op, "attention") == 0) return swin_names(1);
  if (std::strcmp(op, "tail") == 0) return tail_names();
  if (std::strcmp(op, "conv3x3") == 0) return conv3x3_names(1);
  if (std::strcmp(op, "conv2d") == 0) return names(kConv2d);
  if (std::strcmp(op, "quantize_pack") == 0) return names(kQuantizePack);
  if (std::strcmp(op, "conv2d_float") == 0) return "native";
  return "";
}

}  // namespace qsr
