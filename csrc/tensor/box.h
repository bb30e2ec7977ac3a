// An op's function behind the two ways to call it: with torch's lists, and with rows that were read from them (see row.h).
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "tensors.h"

namespace gradalign {

// The lists of one call, one after the other: the number of tensors, then their rows.
class RowReader {
 public:
  explicit RowReader(const Tensor& rows) {
    expect(rows.is_cpu() && rows.is_contiguous() && number_of(rows) == Number::i64, "gradalign_native",
           "expected rows as a vector of int64 on the CPU");
    at_ = static_cast<const int64_t*>(rows.data_ptr());
    end_ = at_ + rows.numel();
  }

  Tensors next() {
    constexpr int64_t kWords = sizeof(Row) / sizeof(int64_t);
    expect(at_ < end_ && *at_ >= 0 && *at_ <= (end_ - at_ - 1) / kWords, "gradalign_native", "expected rows for every list");
    const int64_t size = *at_;
    const Row* rows = reinterpret_cast<const Row*>(at_ + 1);
    at_ += 1 + size * kWords;
    return Tensors(rows, static_cast<size_t>(size));
  }

 private:
  const int64_t* at_;
  const int64_t* end_;
};

template <class Parameter>
constexpr bool kIsList = std::is_same_v<std::decay_t<Parameter>, Tensors>;

template <class... Types>
struct Pack {};

// The parameters that are no lists, in order.
template <class Found, class... Parameters>
struct Others {
  using Types = Found;
};

template <class... Found, class Parameter, class... Rest>
struct Others<Pack<Found...>, Parameter, Rest...>
    : std::conditional_t<kIsList<Parameter>, Others<Pack<Found...>, Rest...>,
                         Others<Pack<Found..., std::decay_t<Parameter>>, Rest...>> {};

template <class Function, Function* function>
struct WithLists;

template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct WithLists<Result(Parameters...), function> {
  template <class Parameter>
  using Given = std::conditional_t<kIsList<Parameter>, const std::vector<Tensor>&, Parameter>;

  // The arguments of the op, in the order of its schema.
  static Result call(Given<Parameters>... arguments) {
    return function(std::conditional_t<kIsList<Parameters>, Tensors, Given<Parameters>>(arguments)...);
  }
};

template <class Function, Function* function, class NoLists>
struct Rows;

template <class Result, class... Parameters, Result (*function)(Parameters...), class... NoLists>
struct Rows<Result(Parameters...), function, Pack<NoLists...>> {
  // A tensor of the device, for torch to choose by; the rows of all lists; the other arguments in the order of the schema.
  static Result call(const Tensor&, const Tensor& rows, NoLists... others) {
    RowReader reader(rows);
    std::vector<Tensors> lists;
    ((kIsList<Parameters> ? lists.push_back(reader.next()) : void()), ...);
    return apply(lists, std::tie(others...), std::index_sequence_for<Parameters...>{});
  }

 private:
  template <class Tied, size_t... kPlaces>
  static Result apply(const std::vector<Tensors>& lists, const Tied& others, std::index_sequence<kPlaces...>) {
    return function(given<Parameters, kPlaces>(lists, others)...);
  }

  template <class Parameter, size_t kPlace, class Tied>
  static const auto& given(const std::vector<Tensors>& lists, const Tied& others) {
    if constexpr (kIsList<Parameter>) {
      return lists[lists_before(kPlace)];
    } else {
      return std::get<kPlace - lists_before(kPlace)>(others);
    }
  }

  static constexpr size_t lists_before(size_t place) {
    constexpr bool kLists[] = {kIsList<Parameters>...};
    size_t count = 0;
    for (size_t i = 0; i < place; ++i) count += kLists[i] ? 1 : 0;
    return count;
  }
};

template <class Function, Function* function>
struct WithRows;

template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct WithRows<Result(Parameters...), function>
    : Rows<Result(Parameters...), function, typename Others<Pack<>, Parameters...>::Types> {};

}  // namespace gradalign
