#include "runtime/numeric.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "errors.hpp"

namespace var_edge_impl {

namespace {

// The first that is not finite makes the message.
void expect(bool finite, const std::string& what, const Manifest& manifest) {
    if (finite) return;
    const std::string reason =
        manifest.precision == "fp32"
            ? " is exported in fp32, so its weights are damaged or too large; check the checkpoint"
            : " overflows in " + manifest.precision + "; use FP32 or check with make verify";
    throw failed(what + " hold NaN or infinity: " + manifest.model.name + reason);
}

bool drawn_all(const std::int32_t* tokens, std::int64_t count) {
    return std::none_of(tokens, tokens + count, [](std::int32_t token) { return token < 0; });
}

}  // namespace

void check_drawn(Backend& backend, const Manifest& manifest, std::int64_t size, std::size_t scales) {
    std::vector<std::int32_t> drawn(std::size_t(size * manifest.scales.back().tokens));
    for (std::size_t k = 0; k < scales; ++k) {
        backend.drawn(k, drawn.data());
        expect(drawn_all(drawn.data(), size * manifest.scales[k].tokens), "logits of scale " + std::to_string(k),
               manifest);
    }
}

void check_pixels(Backend& backend, const Manifest& manifest) {
    const std::vector<std::uint8_t> finite = backend.finite();
    expect(std::count(finite.begin(), finite.end(), 0) == 0, "pixels of the decoder", manifest);
}

void check_encoded(const std::int32_t* tokens, const Manifest& manifest) {
    expect(drawn_all(tokens, manifest.model.tokens()), "features of the encoder", manifest);
}

}  // namespace var_edge_impl
