// Which counters a launch may use. Blocks of one launch count their arrivals in device memory,
// which must be 0 when the launch begins and is 0 again when it ends: no launch, memset or host
// call prepares it.
//
// Two launches that may run at the same time must not share a set of counters. Launches into one
// stream do not overlap, so a stream owns a set. A captured launch runs later, in streams of the
// graph's choosing, and possibly beside other graphs captured in the same stream: each gets a set
// of its own, for good. Where the sets are used up, forward and backward clear counters of their
// own, at the price of a memset.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

#include "plan.h"

namespace cfal::cuda {

constexpr int kTicketSets = 1024;  // 256 KiB of device memory

class TicketSets {
 public:
  // A set for a launch into `stream` of `device`, or -1 if none is left.
  int take(int device, const void* stream, bool capturing) {
    const std::lock_guard<std::mutex> lock(mutex_);
    DeviceSets& sets = devices_[device];
    if (capturing) return sets.used < kTicketSets ? sets.used++ : -1;
    const auto found = sets.of_stream.find(stream);
    if (found != sets.of_stream.end()) return found->second;
    if (sets.used == kTicketSets) return -1;
    return sets.of_stream[stream] = sets.used++;
  }

 private:
  struct DeviceSets {
    int used = 0;
    std::map<const void*, int> of_stream;
  };
  std::mutex mutex_;
  std::map<int, DeviceSets> devices_;
};

}  // namespace cfal::cuda
