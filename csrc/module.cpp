// gradalign._C: build information and the launch planner. No torch header here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "plan.h"

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information and the launch planner of the native kernels.";
  m.def("build_info", &build_info, "What this binary was built from, with and for.");
  m.def("plan", &plan, pybind11::arg("numels"), pybind11::arg("page_elements") = gradalign::kPageElements,
        "Pages of equal work: lists of (tensor, begin, length).");
}
