// gradalign._C: build information, the launch planner, and the reader of lists of tensors. No torch header here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "agreement.h"
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
// row for each of them, as int64. None where a tensor is to be left to torch.
pybind11::object rows(const pybind11::tuple& lists) {
  using gradalign::Row;
  constexpr size_t kWords = sizeof(Row) / sizeof(int64_t);
  if (!reader) return pybind11::none();
  size_t words = 0;
  for (const pybind11::handle list : lists) {
    if (!PyTuple_Check(list.ptr())) throw pybind11::type_error("rows: expected tuples of tensors");
    words += 1 + static_cast<size_t>(PyTuple_GET_SIZE(list.ptr())) * kWords;
  }
  auto bytes = pybind11::reinterpret_steal<pybind11::object>(
      PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(words * sizeof(int64_t))));
  if (!bytes) throw pybind11::error_already_set();
  auto* next = reinterpret_cast<int64_t*>(PyByteArray_AS_STRING(bytes.ptr()));
  const Row* first = nullptr;
  for (const pybind11::handle list : lists) {
    const Py_ssize_t size = PyTuple_GET_SIZE(list.ptr());
    *next = size;
    auto* row = reinterpret_cast<Row*>(next + 1);
    for (Py_ssize_t i = 0; i < size; ++i, ++row) {
      if (!reader->read(PyTuple_GET_ITEM(list.ptr(), i), *row)) return pybind11::none();
      if (first == nullptr) first = row;
      if (row->memory != first->memory || row->device != first->device) return pybind11::none();
    }
    next = reinterpret_cast<int64_t*>(row);
  }
  return bytes;
}

std::vector<gradalign::RowList> lists_of(const pybind11::object& rows) {
  using gradalign::Row;
  if (!PyByteArray_CheckExact(rows.ptr())) throw pybind11::type_error("expected what `rows` returned");
  const auto* next = reinterpret_cast<const int64_t*>(PyByteArray_AS_STRING(rows.ptr()));
  const auto* end = next + PyByteArray_GET_SIZE(rows.ptr()) / static_cast<Py_ssize_t>(sizeof(int64_t));
  std::vector<gradalign::RowList> lists;
  while (next < end) {
    const auto* first = reinterpret_cast<const Row*>(next + 1);
    lists.push_back({first, first + *next});
    next = reinterpret_cast<const int64_t*>(first + *next);
  }
  return lists;
}

bool agree(const pybind11::object& rows, size_t num_written) { return gradalign::agree(lists_of(rows), num_written); }

// Whether each list of a step but the last, its counts, has the shapes of the first, or is empty.
bool same_shapes(const pybind11::object& rows) {
  const auto lists = lists_of(rows);
  for (size_t number = 1; number + 1 < lists.size(); ++number) {
    const gradalign::RowList &list = lists[number], &first = lists.front();
    if (list.size() > 0 && !std::equal(list.begin(), list.end(), first.begin(), first.end(), gradalign::same_shape)) return false;
  }
  return true;
}

// Of each list in such rows: the addresses of its tensors as int64, and what is equal for two lists whose tensors agree in dtype,
// sizes and strides.
pybind11::list keys(const pybind11::object& rows) {
  pybind11::list found;
  std::string addresses, format;
  const auto add = [](std::string& to, const void* from, size_t bytes) { to.append(static_cast<const char*>(from), bytes); };
  for (const gradalign::RowList& list : lists_of(rows)) {
    addresses.clear();
    format.clear();
    for (const gradalign::Row& row : list) {
      add(addresses, &row.data, sizeof(row.data));
      const int64_t ndim = row.flat ? -1 : row.ndim;
      const int64_t kind[] = {static_cast<int64_t>(row.number), row.numel, ndim};
      add(format, kind, sizeof(kind));
      if (row.flat) continue;
      add(format, row.sizes, static_cast<size_t>(ndim) * sizeof(int64_t));
      add(format, row.strides, static_cast<size_t>(ndim) * sizeof(int64_t));
    }
    found.append(pybind11::make_tuple(pybind11::bytes(addresses), pybind11::bytes(format)));
  }
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information, the launch planner and the reader of lists of the native kernels.";
  m.def("build_info", &build_info, "What this binary was built from, with and for.");
  m.def("plan", &plan, pybind11::arg("numels"), pybind11::arg("page_elements") = gradalign::kPageElements,
        "Pages of equal work: lists of (tensor, begin, length).");
  m.def("use_tensors", &use_tensors, "Read tensors of these two types; False where torch has no interface for it.");
  m.def("rows", &rows, "Tuples of tensors as rows of int64; None where a tensor is to be left to torch.");
  m.def("agree", &agree, "Whether an op can take the lists in rows, of which it writes the first ones; False also where it is not sure.");
  m.def("same_shapes", &same_shapes, "Whether each list in rows but the last has the shapes of the first, or is empty.");
  m.def("keys", &keys, "Of each list in rows, its addresses as int64, and what tells its dtypes, sizes and strides from others.");
}
