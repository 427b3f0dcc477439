// The operator of plans (network/executor.h), see ops.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

#include "network/executor.h"
#include "network/maps.h"
#include "torch/checks.h"
#include "torch/threads.h"

namespace {

using torch::stable::Tensor;

// Elements of a contiguous tensor on the CPU and how many there are.
template <class T>
qsr::Room<T> room(const Tensor& t, const char* name) {
  return {qsr::elements<std::remove_const_t<T>>(t, name), t.numel()};
}

// Steps [first, last) of a plan; the tables are those of executor.h.
void run_plan(std::vector<Tensor> inputs, const Tensor& numbers, const Tensor& constants,
              const Tensor& weights, int64_t first, int64_t last, qsr::Name kernel,
              qsr::Name swin, Tensor workspace, std::vector<Tensor> outputs) {
  qsr::Tables tables{room<const int64_t>(numbers, "numbers"),
                     room<const float>(constants, "constants"),
                     room<const uint8_t>(weights, "weights"),
                     room<uint8_t>(workspace, "workspace"),
                     {},
                     {}};
  for (const Tensor& t : inputs) tables.inputs.push_back(room<float>(t, "inputs"));
  for (const Tensor& t : outputs) tables.outputs.push_back(room<float>(t, "outputs"));
  const auto aligned = [](const void* data) { return reinterpret_cast<intptr_t>(data) % 64 == 0; };
  STD_TORCH_CHECK(aligned(tables.weights.data) && aligned(tables.workspace.data),
                  "weights and workspace must be aligned to 64 bytes");
  const qsr::Executor plan(tables, kernel, swin);
  STD_TORCH_CHECK(first >= 0 && last <= plan.steps(), "steps are counted from 0");
  for (int64_t step = first; step < last; ++step)
    plan.run(step, qsr::parallel<std::function<void(int64_t, int64_t)>>);
}

// A function of each number of x, by a row of maps.h.
Tensor element(const Tensor& x, qsr::Name name, qsr::Name kernel) {
  const qsr::MapsKernel* row = qsr::find_maps(kernel.c_str());
  STD_TORCH_CHECK(row != nullptr, "there is no kernel of this name here");
  const qsr::Op op = qsr::element(name);
  Tensor y = torch::stable::empty_like(x);
  const float* from = qsr::elements<float>(x, "x");
  float* to = qsr::elements<float>(y, "y");
  qsr::parallel(x.numel(), 16, [&](int64_t first, int64_t last) {
    row->element(op, from + first, to + first, last - first);
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qsr_native, m) {
  m.def(
      "run_plan(Tensor[] inputs, Tensor numbers, Tensor constants, Tensor weights, int first, "
      "int last, str kernel, str swin, Tensor(a!) workspace, Tensor(b!)[] outputs) -> ()");
  m.def("element(Tensor x, str name, str kernel=\"auto\") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("run_plan", TORCH_BOX(&run_plan));
  m.impl("element", TORCH_BOX(&element));
}
