#include "runtime/drafted.hpp"

#include <algorithm>
#include <sstream>
#include <string>

#include "errors.hpp"

namespace var_edge_impl {

namespace {

std::string listed(const std::vector<std::int64_t>& values) {
    std::string text;
    for (const std::int64_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
    return "(" + text + ")";
}

std::string plain(double value) {
    std::ostringstream text;
    text << value;
    return text.str();
}

}  // namespace

void check_fit(const Pipeline& draft, const Pipeline& refiner) {
    const std::string there = draft.bundle(), here = refiner.bundle();
    const std::string again = "; draft with a model of the same VQVAE";
    const auto same = [&](const std::string& key, const std::string& found, const std::string& expected) {
        if (found == expected) return;
        throw bad_argument("draft " + there + ": expected " + key + " " + expected + " as in " + here + ", found " +
                           found + again);
    };
    const Model &large = draft.manifest().model, &small = refiner.manifest().model;
    same("patch_nums", listed(large.patch_nums), listed(small.patch_nums));
    same("vocab_size", std::to_string(large.vocab_size), std::to_string(small.vocab_size));
    same("num_classes", std::to_string(large.num_classes), std::to_string(small.num_classes));
    same("image_size", std::to_string(large.image_size), std::to_string(small.image_size));
    same("quant_resi", plain(large.quant_resi), plain(small.quant_resi));  // how the phi convolutions are used
    same("share_quant_resi", std::to_string(large.share_quant_resi), std::to_string(small.share_quant_resi));
    for (const Pipeline* one : {&draft, &refiner}) {
        if (one->manifest().vqvae_sha256.empty()) {
            throw bad_bundle(one->bundle() + ": does not say which VQVAE it has (vqvae_sha256); export it again");
        }
    }
    const std::string found = draft.manifest().vqvae_sha256, expected = refiner.manifest().vqvae_sha256;
    if (found != expected) {
        throw bad_argument("draft " + there + ": expected the VQVAE of " + here + " (" + expected.substr(0, 12) +
                           "…), found another (" + found.substr(0, 12) + "…)" + again);
    }
}

Drafted::Drafted(const Request& request, Pipeline& refiner, const OnScale& on_scale) : rest(request) {
    const std::int64_t scales = request.draft_scales;
    const Manifest& manifest = refiner.manifest();
    rest.draft = nullptr;
    if (!scales) return;
    rest.make_room = [draft = request.draft] { draft->free_batches(); };
    Request first = rest;
    first.make_room = [&refiner] { refiner.free_batches(); };
    first.on_scale = on_scale;
    if (request.on_stage) {
        first.on_stage = [&](const char* stage, std::int64_t scale, double seconds) {
            request.on_stage((std::string("draft ") + stage).c_str(), scale, seconds);
        };
    }
    // The draft needs no arrays or profiles for scales behind the guided ones that it does not draw, and no decoder.
    if (first.sampling.guidance_scales >= scales) first.sampling.guidance_scales = 0;
    if (!request.draft->manifest().graphs.count(first.sampling.decoder_graph())) {
        first.sampling.decoder = VAR_EDGE_DECODER_FULL;
    }
    tokens = request.draft->draw_tokens(first, std::size_t(scales));

    rest.on_scale = nullptr;  // with no scale left, nothing of the refiner is watched
    if (request.on_scale && std::size_t(scales) < manifest.scales.size()) {
        rest.on_scale = [=, heard = request.on_scale](std::int64_t k, std::int64_t start, std::int64_t pictures) {
            return k < scales || heard(k, start, pictures);
        };
    }
    const auto total = std::size_t(manifest.model.tokens());
    const Scale& last = manifest.scales[std::size_t(scales) - 1];
    const auto drafted = std::size_t(last.offset + last.tokens);
    keep.resize(tokens.size());
    for (std::size_t start = 0; start < tokens.size(); start += total) {
        std::fill_n(keep.begin() + std::ptrdiff_t(start), drafted, std::uint8_t(1));
        for (std::size_t i = start + drafted; request.keep && i < start + total; ++i) {
            keep[i] = request.keep[i];
            tokens[i] = request.keep[i] ? request.kept_tokens[i] : 0;
        }
    }
    rest.keep = keep.data();
    rest.kept_tokens = tokens.data();
}

}  // namespace var_edge_impl
