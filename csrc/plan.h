// The launch planner: cuts a list of tensors, laid end to end, into pages of equal work.
//
// A page is a run of pieces, a piece a range of one tensor's elements. One huge tensor becomes many pages, a thousand tiny ones
// share a few. The table depends on the sizes alone, so sums taken page by page do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

namespace gradalign {

struct Piece {
  int64_t tensor;
  int64_t begin;
  int64_t length;
};

struct Plan {
  std::vector<Piece> pieces;
  std::vector<int64_t> pages{0};  // page p is pieces[pages[p]] up to pieces[pages[p + 1]]

  int64_t num_pages() const { return static_cast<int64_t>(pages.size()) - 1; }
};

constexpr int64_t kPageElements = 32768;
constexpr int64_t kPieceElements = 64;  // the overhead of one more tensor in a page, in elements

inline Plan plan_pages(const int64_t* numels, int64_t num_tensors, int64_t page_elements = kPageElements) {
  Plan plan;
  int64_t room = page_elements;
  auto close_page = [&] {
    plan.pages.push_back(static_cast<int64_t>(plan.pieces.size()));
    room = page_elements;
  };
  for (int64_t tensor = 0; tensor < num_tensors; ++tensor) {
    for (int64_t begin = 0; begin < numels[tensor];) {
      const int64_t rest = numels[tensor] - begin;
      const int64_t length = rest < room ? rest : room;
      plan.pieces.push_back({tensor, begin, length});
      begin += length;
      room -= length + kPieceElements;
      if (room <= 0) close_page();
    }
  }
  if (plan.pages.back() != static_cast<int64_t>(plan.pieces.size())) close_page();
  return plan;
}

}  // namespace gradalign
