// The settings of a generation. Twin of runtime/sampling.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "errors.hpp"
#include "limits.hpp"
#include "var_edge.h"

namespace var_edge_impl {

constexpr std::int32_t BATCH = 8;  // pictures drawn together

// The graphs of the decoders. TINY_DECODER imitates DECODER at a fraction of its work; not every bundle has it.
constexpr const char* DECODER = "decoder";
constexpr const char* TINY_DECODER = "decoder_tiny";

struct Sampling {
    double cfg = 4.0;
    std::int64_t top_k = 900;
    double top_p = 0.95;
    bool smooth = false;               // mix codes instead of drawing tokens, the published demo's "more smooth"
    std::int64_t guidance_scales = 0;  // the first scales, which are drawn with guidance; 0: all
    std::int64_t decoder = VAR_EDGE_DECODER_FULL;  // what makes the picture of the tokens, a var_edge_decoder

    void check(std::int64_t vocab_size, std::int64_t scales) const {
        if (!limits::CFG.holds(cfg)) {
            throw bad_argument("cfg: expected 0 to " + number(limits::CFG.most) + ", found " + number(cfg));
        }
        if (top_k < 0 || top_k > vocab_size) {
            throw bad_argument("top_k: expected 0 (all) to " + std::to_string(vocab_size) + ", found " +
                               std::to_string(top_k));
        }
        // A positive share that the graphs' float32 rounds to 0 would mean all.
        if (!limits::TOP_P.holds(top_p) || (top_p > 0 && top_p < limits::LEAST_TOP_P)) {
            throw bad_argument("top_p: expected 0 (all) or " + number(limits::LEAST_TOP_P) + " to 1, found " +
                               number(top_p));
        }
        if (guidance_scales < 0 || guidance_scales > scales) {
            throw bad_argument("guidance_scales: expected 0 (all) to " + std::to_string(scales) + ", found " +
                               std::to_string(guidance_scales));
        }
        if (decoder != VAR_EDGE_DECODER_FULL && decoder != VAR_EDGE_DECODER_TINY) {
            throw bad_argument("decoder: expected one of var_edge_decoder, found " + std::to_string(decoder));
        }
    }

    // Returns the graph of the decoder.
    const char* decoder_graph() const { return decoder == VAR_EDGE_DECODER_TINY ? TINY_DECODER : DECODER; }

    // Returns how many scales are drawn with guidance.
    std::int64_t guided(std::int64_t scales) const { return guidance_scales ? guidance_scales : scales; }

    // Returns the guidance t, which grows from 0 to `cfg`; logits become (1 + t) * conditional - t * unconditional. It
    // is 0 behind the guided scales.
    double guidance(std::int64_t scale, std::int64_t scales) const {
        return scale < guided(scales) ? cfg * double(scale) / double(scales - 1) : 0;
    }

    // Returns the factor that smooth sampling multiplies the logits by.
    double sharpness(std::int64_t scale, std::int64_t scales) const { return 1 + double(scale) / double(scales - 1); }

    // Returns the temperature of the softmax over noised logits that smooth sampling mixes codes with.
    double temperature(std::int64_t scale, std::int64_t scales) const {
        return std::max(0.27 * (1 - 0.95 * double(scale) / double(scales - 1)), 0.005);
    }
};

}  // namespace var_edge_impl
