#include "grid.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "table.cuh"

namespace gradalign::cuda {

namespace {

int attribute(cudaDeviceAttr which, const Place& place) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, place.device), place.op);
  return value;
}

int occupancy(const void* kernel, const Place& place) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0), place.op);
  return std::max(1, blocks) * attribute(cudaDevAttrMultiProcessorCount, place);
}

// Queried once for each kernel and device.
template <class Ask>
int remembered(const void* kernel, const Place& place, Ask ask) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(kernel, place.device);
  const auto found = known.find(key);
  return found != known.end() ? found->second : known[key] = ask();
}

}  // namespace

void check(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it is reported here and not again elsewhere
  throw std::runtime_error(std::string(op) + ": CUDA refused: " + cudaGetErrorString(error));
}

int max_blocks(const void* kernel, const Place& place) {
  return remembered(kernel, place, [&] { return occupancy(kernel, place); });
}

int most_blocks(const Place& place) {
  return remembered(nullptr, place, [&] {
    return attribute(cudaDevAttrMultiProcessorCount, place) * attribute(cudaDevAttrMaxThreadsPerMultiProcessor, place) /
           kThreads;
  });
}

}  // namespace gradalign::cuda
