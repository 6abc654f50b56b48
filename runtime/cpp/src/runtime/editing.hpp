// Which tokens of a given picture an edit keeps. Twin of runtime/editing.py.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "bundle/manifest.hpp"

namespace var_edge_impl {

// Returns which tokens of the last grid (P, P) are kept: in-painting keeps what is outside the box, out-painting what
// is inside. The box is y0, x0, y1, x1, as fractions of height and width. Throws Error BAD_ARGUMENT.
std::vector<std::uint8_t> kept_cells_of_box(const std::array<double, 4>& box, bool outpaint, const Model& model);

// Does the same for a mask (H, W), which is not 0 inside. A token is inside if the mask covers more than half of it.
std::vector<std::uint8_t> kept_cells_of_mask(const std::uint8_t* mask, bool outpaint, const Model& model);

// Returns which tokens of every scale are kept, (T,) scale after scale: where `kept`, resized bilinearly, exceeds 0.5.
// The 1 x 1 scale is always kept.
std::vector<std::uint8_t> keep_masks(const std::vector<std::uint8_t>& kept, const Model& model);

}  // namespace var_edge_impl
