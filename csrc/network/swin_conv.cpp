#include "cpu.h"
#include "network/swin_conv.h"

namespace qsr {
namespace {
#include "network/finish.h"
}  // namespace

QSR_CLONES void quantize_map(const float* x, const Finish& f, int64_t first, int64_t last) {
  constexpr int kLanes = 16;
  const int64_t width = f.codes.width, channels = f.codes.channels;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Finisher<kLanes, false> finish(f, c, 1.0f);
    for (int64_t y = first; y < last; ++y)
      for (int64_t i = 0; i < width; ++i)
        finish.quantize(finish.load(x + (y * width + i) * channels + c),
                        f.codes.at(y, i) - f.codes.data);
  }
}

}  // namespace qsr
