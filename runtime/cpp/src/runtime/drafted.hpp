// A large model drafts the first scales, a small one refines them: it draws the others. Twin of runtime/drafted.py.
#pragma once

#include <cstdint>
#include <vector>

#include "bundle/manifest.hpp"
#include "runtime/pipeline.hpp"

namespace var_edge_impl {

// Throws Error BAD_BUNDLE unless the refiner can go on with what the draft has drawn, BAD_ARGUMENT unless `scales` is
// from 0 to K.
void check_draft(const Manifest& draft, const Manifest& refiner, std::int64_t scales);

// A request whose first scales have been drafted.
class Drafted {
  public:
    // Lets request.draft draw its scales, with the seeds, settings and kept tokens of the request.
    Drafted(const Request& request, const Manifest& refiner);

    // Returns what is left for the refiner: the request with the drafted tokens kept. It reads this object's memory.
    const Request& request() const { return left_; }

  private:
    std::vector<std::uint8_t> keep_;    // (N, T)
    std::vector<std::int32_t> tokens_;  // (N, T)
    Request left_;
};

}  // namespace var_edge_impl
