// Draft large, refine small: one model draws the first scales, a smaller one of the same VQVAE the rest. Twin of
// runtime/drafted.py.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/pipeline.hpp"

namespace var_edge_impl {

// Throws Error BAD_ARGUMENT unless the refiner can go on with the tokens of the draft, BAD_BUNDLE if one of the
// manifests does not say which VQVAE it has.
void check_fit(const Pipeline& draft, const Pipeline& refiner);

// What is left for the refiner of a request whose first scales have been drafted. It reads the memory of this object.
struct Drafted {
    // `on_scale` is called for the drafted scales; that of the request for the others, later. If memory runs out for
    // one of the models, that of the other's batches is freed.
    Drafted(const Request& request, Pipeline& refiner, const OnScale& on_scale);
    Drafted(const Drafted&) = delete;
    Drafted& operator=(const Drafted&) = delete;

    std::vector<std::uint8_t> keep;    // (N, T)
    std::vector<std::int32_t> tokens;  // (N, T)
    Request rest;
};

}  // namespace var_edge_impl
