// Finds NaN and infinity. The graphs report them: token -1, or a picture that is not finite. Twin of _check_finite in
// runtime/pipeline.py.
#pragma once

#include <cstdint>

#include "backends/base.hpp"
#include "bundle/manifest.hpp"

namespace var_edge_impl {

// Throws Error FAILED if the logits of one of the first scales of the `size` pictures drawn last hold NaN or infinity.
void check_drawn(Backend& backend, const Manifest& manifest, std::int64_t size, std::size_t scales);

// Throws Error FAILED if the pixels of a picture decoded last hold NaN or infinity.
void check_pixels(Backend& backend, const Manifest& manifest);

// Throws Error FAILED if the encoder's features, of which it made these tokens (T,), hold NaN or infinity.
void check_encoded(const std::int32_t* tokens, const Manifest& manifest);

}  // namespace var_edge_impl
