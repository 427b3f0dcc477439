// torch's threads, for jobs that can be split at any place.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace qsr {

// work(first, last) over parts of [0, count), each unit of about `cost` operations. A cost is an
// estimate, and a double: products of sizes do not overflow in it.
template <class Work>
void parallel(int64_t count, double cost, const Work& work) {
  constexpr double kWorthAThread = 100000;
  torch::stable::parallel_for(0, count, 1 + static_cast<int64_t>(kWorthAThread / (cost + 1)), work);
}

template <class Job>
void run(void (*kernel)(const Job&, int64_t, int64_t), const Job& job, int64_t count,
         double cost) {
  parallel(count, cost, [&](int64_t first, int64_t last) { kernel(job, first, last); });
}

}  // namespace qsr
