#include "numeric.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "error.hpp"

namespace var_edge_impl {

namespace {

Error not_finite(const std::string& what, const std::string& where) {
    return failed(what + " hold NaN or infinity: " + where + "; use FP32 or check with make verify");
}

}  // namespace

void check_finite(Backend& backend, const Manifest& manifest, std::int64_t size) {
    for (std::size_t k = 0; k < manifest.scales.size(); ++k) {
        std::vector<std::int32_t> drawn(std::size_t(size * manifest.scales[k].tokens));
        backend.drawn(k, drawn.data());
        const auto broken = std::count_if(drawn.begin(), drawn.end(), [](std::int32_t token) { return token < 0; });
        if (!broken) continue;
        throw not_finite("logits of scale " + std::to_string(k),
                         std::to_string(broken) + " of " + std::to_string(drawn.size()) + " tokens");
    }
    const std::vector<std::uint8_t> finite = backend.finite();
    const auto broken = std::count(finite.begin(), finite.end(), 0);
    if (broken) throw not_finite("decoded pixels", std::to_string(broken) + " of " + std::to_string(size) + " pictures");
}

void check_encoded(const std::int32_t* tokens, const Model& model) {
    const auto broken = std::count_if(tokens, tokens + model.tokens(), [](std::int32_t token) { return token < 0; });
    if (broken) throw not_finite("features of the picture", std::to_string(broken) + " of " + std::to_string(model.tokens()) + " tokens");
}

}  // namespace var_edge_impl
