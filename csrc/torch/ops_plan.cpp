// The operators of plans (network/executor.h), see ops.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

#include "torch/checks.h"  // first, as long as it needs conv3x3.h
#include "network/executor.h"
#include "torch/threads.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Elements of a contiguous tensor on the CPU and how many there are.
template <class T>
qsr::Room<T> room(const Tensor& t, const char* name) {
  return {qsr::elements<std::remove_const_t<T>>(t, name), t.numel()};
}

// The shape of a convolution: in, out, groups, kernel, stride, dilation, bits of input and weights,
// whether the input is signed.
qsr::ConvShape shape_of(const std::vector<int64_t>& n) {
  STD_TORCH_CHECK(n.size() == 12, "a shape has 12 numbers");
  constexpr int64_t kMost = 1 << 16;
  for (size_t i = 0; i < 9; ++i)
    STD_TORCH_CHECK(n[i] >= 1 && n[i] <= kMost, "a shape has numbers from 1 to 2^16");
  STD_TORCH_CHECK(n[0] % n[2] == 0 && n[1] % n[2] == 0, "groups must divide the channels");
  qsr::check_bits(n[9]), qsr::check_bits(n[10]);
  return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8],
          static_cast<int>(n[9]), static_cast<int>(n[10]), n[11] != 0};
}

// Weight codes [out, kernel_h, kernel_w, in / groups], as the row that runs the shape wants them.
Tensor lay_out_conv(const Tensor& codes, std::vector<int64_t> numbers, qsr::Name kernel) {
  const qsr::ConvShape shape = shape_of(numbers);
  const auto& row = qsr::chosen(qsr::find_conv(kernel.c_str(), shape), kernel, "such a convolution",
                                qsr::conv_names(shape));
  const int64_t count = qsr::product({shape.out, shape.kernel_h, shape.kernel_w,
                                      shape.in / shape.groups});
  const int8_t* from = qsr::exactly<int8_t>(codes, count, "codes");
  Tensor out = torch::stable::new_zeros(codes, {row.laid_out_bytes(shape)}, ScalarType::Byte);
  row.lay_out(from, shape, out.mutable_data_ptr());
  return out;
}

// The row that runs a shape, by name.
std::string conv_row(std::vector<int64_t> numbers, qsr::Name kernel) {
  const qsr::ConvKernel* row = qsr::find_conv(kernel.c_str(), shape_of(numbers));
  return row ? row->name : "";
}

// Steps [first, last) of a plan; the tables are those of executor.h.
void run_plan(std::vector<Tensor> inputs, const Tensor& numbers, const Tensor& constants,
              const Tensor& weights, int64_t first, int64_t last, qsr::Name kernel,
              Tensor workspace, std::vector<Tensor> outputs) {
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
  const qsr::Executor plan(tables, kernel);
  STD_TORCH_CHECK(first >= 0 && last <= plan.steps(), "steps are counted from 0");
  for (int64_t step = first; step < last; ++step)
    plan.run(step, qsr::parallel<std::function<void(int64_t, int64_t)>>);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qsr_native, m) {
  m.def("lay_out_conv(Tensor codes, int[] shape, str kernel) -> Tensor");
  m.def("conv_row(int[] shape, str kernel) -> str");
  m.def(
      "run_plan(Tensor[] inputs, Tensor numbers, Tensor constants, Tensor weights, int first, "
      "int last, str kernel, Tensor(a!) workspace, Tensor(b!)[] outputs) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("lay_out_conv", TORCH_BOX(&lay_out_conv));
  m.impl("run_plan", TORCH_BOX(&run_plan));
}
STABLE_TORCH_LIBRARY_IMPL(qsr_native, CompositeExplicitAutograd, m) {
  m.impl("conv_row", TORCH_BOX(&conv_row));
}
