// The ways in and out of maps on any processor, and frames.
#include <cstring>

#include "cpu.h"
#include "network/maps.h"

namespace qsr {
namespace {

#include "network/finish.h"
constexpr int kLanes = 16, kFinishLanes = 4;
#include "network/maps_kernel.h"

}  // namespace

void zero_frame(const CodeMap& map, int64_t first, int64_t last) {
  const auto zero = [&](int64_t y, int64_t from, int64_t to) {
    if (map.pitch == map.channels) {
      std::memset(map.at(y, from), 0, static_cast<size_t>((to - from) * map.pitch));
      return;
    }
    for (int64_t x = from; x < to; ++x)
      std::memset(map.at(y, x), 0, static_cast<size_t>(map.channels));
  };
  const int64_t begin = first == 0 ? -map.frame.top : first;
  const int64_t end = last == map.height ? last + map.frame.bottom : last;
  for (int64_t y = begin; y < end; ++y) {
    const bool inside = y >= 0 && y < map.height;
    zero(y, -map.frame.left, inside ? 0 : map.width);
    zero(y, map.width, map.width + map.frame.right);
  }
}

const MapsKernel kMapsPortable = {"portable", anywhere, quantize, quantize_planes,
                               to_planes, finish_rows, element};

}  // namespace qsr
