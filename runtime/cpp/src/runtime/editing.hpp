// Which tokens of a given picture an edit keeps. Twin of runtime/editing.py.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "bundle/manifest.hpp"

namespace var_edge_impl {

// What is kept, (P, P) on the last grid, of a box y0, x0, y1, x1 in shares of the picture: in-painting keeps what is
// outside of it, out-painting what is inside. Throws Error BAD_ARGUMENT.
std::vector<std::uint8_t> kept_cells_of_box(const std::array<double, 4>& box, bool outpaint, const Model& model);

// The same of a mask (H, W), inside where it is not 0: a token is inside if the mask covers it by more than a half.
std::vector<std::uint8_t> kept_cells_of_mask(const std::uint8_t* mask, bool outpaint, const Model& model);

// `kept` at every scale, (T,) scale after scale: where it exceeds 0.5 resized bilinearly; the 1 x 1 scale always.
std::vector<std::uint8_t> keep_masks(const std::vector<std::uint8_t>& kept, const Model& model);

}  // namespace var_edge_impl
