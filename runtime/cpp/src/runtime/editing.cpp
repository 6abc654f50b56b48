#include "runtime/editing.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "errors.hpp"

namespace var_edge_impl {

namespace {

// For each of `side` outputs the two inputs of `size` it lies between, and the weight of the second.
struct Tap {
    std::int64_t first, second;
    float far;
};

std::vector<Tap> taps(std::int64_t size, std::int64_t side) {
    const float scale = float(size) / float(side);
    std::vector<Tap> found;
    for (std::int64_t i = 0; i < side; ++i) {
        // Rounded once, as a fused multiply-add does: rounded twice, 13 from 16 decides a cell half covered otherwise.
        const float position = std::max(0.0f, float(double(scale) * (double(i) + 0.5) - 0.5));
        const auto first = std::int64_t(position);
        found.push_back({first, std::min(first + 1, size - 1), position - float(first)});
    }
    return found;
}

void keep_inside_or_outside(std::vector<std::uint8_t>& inside, bool outpaint) {
    for (std::uint8_t& cell : inside) cell = (cell != 0) == outpaint;
}

}  // namespace

std::vector<std::uint8_t> kept_cells_of_box(const std::array<double, 4>& box, bool outpaint, const Model& model) {
    const auto [y0, x0, y1, x1] = box;
    std::string listed;
    for (double edge : box) listed += (listed.empty() ? "" : ",") + number(edge);
    if (!(0 <= y0 && y0 < y1 && y1 <= 1 && 0 <= x0 && x0 < x1 && x1 <= 1)) {
        throw bad_argument("box: expected 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1, found " + listed);
    }
    const std::int64_t grid = model.grid();
    const auto cell = [&](double edge) { return std::int64_t(std::nearbyint(edge * double(grid))); };  // half to even
    if (cell(y0) == cell(y1) || cell(x0) == cell(x1)) {
        const std::string side = std::to_string(grid);
        throw bad_argument("box: " + listed + " rounds to none of the " + side + " x " + side +
                           " tokens; take a larger one");
    }
    std::vector<std::uint8_t> inside(std::size_t(grid * grid));
    for (std::int64_t y = cell(y0); y < cell(y1); ++y) {
        for (std::int64_t x = cell(x0); x < cell(x1); ++x) inside[std::size_t(y * grid + x)] = 1;
    }
    keep_inside_or_outside(inside, outpaint);
    return inside;
}

std::vector<std::uint8_t> kept_cells_of_mask(const std::uint8_t* mask, bool outpaint, const Model& model) {
    const std::int64_t grid = model.grid(), size = model.image_size, pixels = size / grid;
    std::vector<std::uint8_t> inside(std::size_t(grid * grid));
    bool any = false;
    for (std::int64_t cell = 0; cell < grid * grid; ++cell) {
        std::int64_t covered = 0;
        for (std::int64_t y = 0; y < pixels; ++y) {
            const std::uint8_t* row = mask + (cell / grid * pixels + y) * size + cell % grid * pixels;
            covered += pixels - std::count(row, row + pixels, 0);
        }
        inside[std::size_t(cell)] = 2 * covered > pixels * pixels;
        any |= inside[std::size_t(cell)] != 0;
    }
    if (!any) {
        const std::string side = std::to_string(grid);
        throw bad_argument("mask: covers none of the " + side + " x " + side +
                           " tokens by more than a half; mark more pixels");
    }
    keep_inside_or_outside(inside, outpaint);
    return inside;
}

std::vector<std::uint8_t> keep_masks(const std::vector<std::uint8_t>& kept, const Model& model) {
    const std::int64_t grid = model.grid();
    const auto value = [&](std::int64_t y, std::int64_t x) { return float(kept[std::size_t(y * grid + x)]); };
    std::vector<std::uint8_t> masks;
    for (std::int64_t side : model.patch_nums) {
        const std::vector<Tap> axis = taps(grid, side);
        for (const Tap& y : axis) {
            for (const Tap& x : axis) {
                const float near = 1 - y.far;
                const float left = value(y.first, x.first) * near + value(y.second, x.first) * y.far;
                const float right = value(y.first, x.second) * near + value(y.second, x.second) * y.far;
                masks.push_back(side == 1 || left * (1 - x.far) + right * x.far > 0.5f);
            }
        }
    }
    return masks;
}

}  // namespace var_edge_impl
