// THE tables: which kernels there are, best first, and what each needs of the processor.
#include <cstring>

#include "network/conv.h"
#include "network/maps.h"
#include "cpu.h"
#include "kernels.h"
#include "network/tail.h"
#include "network/swin.h"
#include "train/swin_step.h"

namespace qsr {
namespace {

template <class Job>
bool anything(const Job&) {
  return true;
}

constexpr Kernel<Conv2d> kConv2d[] = {
    {"winograd-vnni", has_vnni, takes_winograd_vnni, conv2d_winograd_vnni},
    {"vpopcnt", has_vpopcnt, takes_vpopcnt, conv2d_vpopcnt},
    {"direct-vnni", has_vnni, takes_direct_vnni, conv2d_direct_vnni},
    {"winograd-avx2", has_avx2, takes_winograd_avx2, conv2d_winograd_avx2},
    {"table", has_avx2, takes_table, conv2d_table},
    {"direct-avx2", has_avx2, takes_direct_avx2, conv2d_direct_avx2},
    {"popcnt", has_popcnt, anything<Conv2d>, conv2d_popcnt},
    {"scalar", anywhere, anything<Conv2d>, conv2d_scalar},
};

constexpr Kernel<QuantizePack> kQuantizePack[] = {
    {"scalar", anywhere, anything<QuantizePack>, quantize_pack_scalar},
};

// Rows of whole layers stand beside their kernels, as constants.
const ConvKernel kConv[] = {kConvWinogradVnni, kConvDirectVnni, kConvWinogradAvx2, kConvDirectAvx2,
                            kConvPortable};
const MapsKernel kMaps[] = {kMapsAvx512, kMapsAvx2, kMapsPortable};
const SwinKernel kSwin[] = {kSwinVnni, kSwinAvx2, kSwinPortable};
const TailKernel kTail[] = {kTailAvx512, kTailAvx2, kTailPortable};
const SwinStepKernel kSwinStep[] = {kSwinStepBf16, kSwinStepAvx2, kSwinStepPortable};

// Which rows to look at: those that take a job, those that multiply so many bits, or all.
template <class Job>
auto taking(const Job& job) {
  return [&job](const auto& row) { return row.takes(job); };
}
auto multiplying(int bits) {
  return [bits](const auto& row) { return bits <= row.max_bits; };
}
constexpr auto kAll = [](const auto&) { return true; };

template <class Row, size_t N, class Wanted>
const Row* find(const Row (&table)[N], const char* name, const Wanted& wanted) {
  const bool any = std::strcmp(name, "auto") == 0;
  for (const Row& row : table)
    if ((any || std::strcmp(name, row.name) == 0) && row.supported() && wanted(row)) return &row;
  return nullptr;
}

template <class Row, size_t N, class Wanted>
std::string names(const Row (&table)[N], const Wanted& wanted) {
  std::string list;
  for (const Row& row : table)
    if (row.supported() && wanted(row)) list += (list.empty() ? "" : ",") + std::string(row.name);
  return list;
}

}  // namespace

const Kernel<Conv2d>* find_conv2d(const char* name, const Conv2d& job) {
  return find(kConv2d, name, taking(job));
}
std::string conv2d_names(const Conv2d& job) { return names(kConv2d, taking(job)); }
const Kernel<QuantizePack>* find_quantize_pack(const char* name, const QuantizePack& job) {
  return find(kQuantizePack, name, taking(job));
}
const ConvKernel* find_conv(const char* name, const ConvShape& shape) {
  return find(kConv, name, taking(shape));
}
std::string conv_names(const ConvShape& shape) { return names(kConv, taking(shape)); }
const MapsKernel* find_maps(const char* name) { return find(kMaps, name, kAll); }
const MapsKernel& maps_beside(const ConvKernel& conv) {
  return *find(kMaps, "auto", [&](const auto& row) { return row.supported == conv.supported; });
}
const MapsKernel& maps_kernel() { return *find(kMaps, "auto", kAll); }
const SwinKernel* find_swin(const char* name, int bits) {
  return find(kSwin, name, multiplying(bits));
}
std::string swin_names(int bits) { return names(kSwin, multiplying(bits)); }
const TailKernel* find_tail(const char* name) { return find(kTail, name, kAll); }
const SwinStepKernel* find_swin_step(const char* name) { return find(kSwinStep, name, kAll); }
std::string swin_step_names() { return names(kSwinStep, kAll); }

std::string available(const char* op, int bits) {
  if (std::strcmp(op, "conv2d") == 0) return names(kConv2d, kAll);
  if (std::strcmp(op, "quantize_pack") == 0) return names(kQuantizePack, kAll);
  if (std::strcmp(op, "conv2d_float") == 0) return "native";
  if (std::strcmp(op, "conv") == 0) return names(kConv, kAll);
  if (std::strcmp(op, "conv3x3") == 0) return conv_names(shape_3x3(kMapLanes, bits, false));
  if (std::strcmp(op, "attention") == 0) return swin_names(bits);
  if (std::strcmp(op, "tail") == 0) return names(kTail, kAll);
  if (std::strcmp(op, "swin_step") == 0) return swin_step_names();
  return "";
}

}  // namespace qsr
