// An op's function behind the two ways to call it: with torch's lists, and with rows that were read from them (see row.h).
#pragma once

#include <tuple>
#include <type_traits>

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

// What is on torch's stack for a parameter.
template <class Parameter>
using OnStack = std::conditional_t<kIsList<Parameter>, std::vector<Tensor>, std::decay_t<Parameter>>;

template <class Function, Function* function>
struct Box;

template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct Box<Result(Parameters...), function> {
  // The arguments of the op, in the order of its schema.
  static void with_lists(StableIValue* stack, uint64_t num_inputs, uint64_t) {
    check(num_inputs, sizeof...(Parameters));
    StableIValue* next = stack;
    std::tuple<OnStack<Parameters>...> taken{torch::stable::detail::to<OnStack<Parameters>>(*next++)...};
    std::apply(
        [stack](auto&... arguments) {
          give(stack, [&]() -> Result { return function(argument<Parameters>(arguments)...); });
        },
        taken);
  }

  // A tensor of the device, the rows of all lists, and the other arguments in order.
  static void with_rows(StableIValue* stack, uint64_t num_inputs, uint64_t) {
    check(num_inputs, 2 + (0 + ... + !kIsList<Parameters>));
    const auto like = torch::stable::detail::to<Tensor>(stack[0]);
    const auto rows = torch::stable::detail::to<Tensor>(stack[1]);
    StableIValue* next = stack + 2;
    std::tuple<std::conditional_t<kIsList<Parameters>, char, std::decay_t<Parameters>>...> taken{take<Parameters>(next)...};
    RowReader lists(rows);
    std::apply(
        [stack, &lists](auto&... arguments) {
          std::tuple<Held<Parameters>...> held{Held<Parameters>(lists, arguments)...};
          std::apply([stack](auto&... each) { give(stack, [&]() -> Result { return function(each.value...); }); }, held);
        },
        taken);
  }

 private:
  template <class Parameter, bool kList = kIsList<Parameter>>
  struct Held {
    Held(RowReader&, std::decay_t<Parameter>& given) : value(given) {}
    std::decay_t<Parameter>& value;
  };

  template <class Parameter>
  struct Held<Parameter, true> {
    Held(RowReader& lists, char) : value(lists.next()) {}
    Tensors value;
  };

  static void check(uint64_t got, uint64_t expected) {
    expect(got == expected, "gradalign_native", "expected as many arguments as the kernel has; build it again");
  }

  template <class Parameter>
  static auto take(StableIValue*& next) {
    if constexpr (kIsList<Parameter>) {
      return '\0';
    } else {
      return torch::stable::detail::to<std::decay_t<Parameter>>(*next++);
    }
  }

  template <class Parameter>
  static decltype(auto) argument(OnStack<Parameter>& taken) {
    if constexpr (kIsList<Parameter>) {
      return Tensors(std::move(taken));
    } else {
      return (taken);
    }
  }

  template <class Call>
  static void give(StableIValue* stack, Call call) {
    if constexpr (std::is_void_v<Result>) {
      call();
    } else {
      stack[0] = torch::stable::detail::from<Result>(call());
    }
  }
};

}  // namespace gradalign
