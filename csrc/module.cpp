// gradalign._C: build information, the launch planner, and the reader of lists of tensors. No torch header here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <vector>

#include "plan.h"
#include "reader.h"

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = GRADALIGN_COMPILER;
  info["digest"] = GRADALIGN_DIGEST;
  info["built_for"] = GRADALIGN_BUILT_FOR;
  info["cplusplus"] = __cplusplus;
  return info;
}

using Page = std::vector<std::tuple<int64_t, int64_t, int64_t>>;  // tensor, begin, length

std::vector<Page> plan(const std::vector<int64_t>& numels, int64_t page_elements) {
  if (page_elements < 1) {
    throw pybind11::value_error("plan: expected page_elements of at least 1; got " + std::to_string(page_elements));
  }
  for (int64_t numel : numels) {
    if (numel < 0) throw pybind11::value_error("plan: expected sizes of at least 0; got " + std::to_string(numel));
  }
  const auto table = gradalign::plan_pages(numels.data(), static_cast<int64_t>(numels.size()), page_elements);
  std::vector<Page> pages(static_cast<size_t>(table.num_pages()));
  for (int64_t page = 0; page < table.num_pages(); ++page) {
    for (int64_t i = table.pages[page]; i < table.pages[page + 1]; ++i) {
      const auto& piece = table.pieces[i];
      pages[page].emplace_back(piece.tensor, piece.begin, piece.length);
    }
  }
  return pages;
}

std::optional<gradalign::Reader> reader;

// The types and the method are torch's own: they live as long as the process.
bool use_tensors(pybind11::type tensor, pybind11::type parameter) {
  if (!pybind11::hasattr(tensor, "__dlpack_c_exchange_api__")) return false;
  const pybind11::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* exchange = static_cast<const gradalign::dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (exchange == nullptr) throw pybind11::error_already_set();
  const pybind11::object is_neg = tensor.attr("is_neg");
  if (exchange->major != 1 || exchange->tensor_from_object == nullptr || !Py_IS_TYPE(is_neg.ptr(), &PyMethodDescr_Type)) return false;
  const PyMethodDef& method = *reinterpret_cast<PyMethodDescrObject*>(is_neg.ptr())->d_method;
  if (method.ml_flags != METH_NOARGS) return false;
  reader.emplace(exchange, tensor.ptr(), parameter.ptr(), method.ml_meth);
  return true;
}

// The rows of some tuples of tensors, which have to be kept while the rows are used: for each the number of its tensors and a
// row for each of them, as int64. None where a tensor is to be left to torch. `written`: which of the tuples a kernel writes.
pybind11::object rows(const pybind11::tuple& lists, const pybind11::tuple& written) {
  using gradalign::Memory, gradalign::Row;
  if (!reader) return pybind11::none();
  size_t words = 0;
  for (const pybind11::handle list : lists) {
    if (!PyTuple_CheckExact(list.ptr())) throw pybind11::type_error("rows: expected tuples of tensors");
    words += 1 + static_cast<size_t>(PyTuple_GET_SIZE(list.ptr())) * (sizeof(Row) / sizeof(int64_t));
  }
  auto bytes = pybind11::reinterpret_steal<pybind11::object>(
      PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(words * sizeof(int64_t))));
  if (!bytes) throw pybind11::error_already_set();
  auto* next = reinterpret_cast<int64_t*>(PyByteArray_AS_STRING(bytes.ptr()));
  const Row* first = nullptr;
  if (written.size() != lists.size()) throw pybind11::value_error("rows: expected one of written for each list");
  size_t number = 0;
  for (const pybind11::handle list : lists) {
    const bool is_written = written[number++].ptr() == Py_True;
    const Py_ssize_t size = PyTuple_GET_SIZE(list.ptr());
    *next = size;
    auto* row = reinterpret_cast<Row*>(next + 1);
    for (Py_ssize_t i = 0; i < size; ++i, ++row) {
      if (!reader->read(PyTuple_GET_ITEM(list.ptr(), i), is_written, *row)) return pybind11::none();
      if (first == nullptr) first = row;
      if (row->memory != first->memory || row->device != first->device) return pybind11::none();
    }
    next = reinterpret_cast<int64_t*>(row);
  }
  return bytes;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information, the launch planner and the reader of lists of the native kernels.";
  m.def("build_info", &build_info, "What this binary was built from, with and for.");
  m.def("plan", &plan, pybind11::arg("numels"), pybind11::arg("page_elements") = gradalign::kPageElements,
        "Pages of equal work: lists of (tensor, begin, length).");
  m.def("use_tensors", &use_tensors, "Read tensors of these two types; False where torch has no interface for it.");
  m.def("rows", &rows, "Tuples of tensors as rows of int64; None where a tensor is to be left to torch.");
}
