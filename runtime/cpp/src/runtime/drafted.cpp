#include "runtime/drafted.hpp"

#include <string>

#include "errors.hpp"

namespace var_edge_impl {

namespace {

std::string listed(const std::vector<std::int64_t>& values) {
    std::string text;
    for (const std::int64_t value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
    return text;
}

}  // namespace

void check_draft(const Manifest& draft, const Manifest& refiner, std::int64_t scales) {
    const Model &large = draft.model, &small = refiner.model;
    const std::string pair = "draft: " + large.name + " does not fit " + small.name + ": ";
    const auto same = [&](const std::string& what, const std::string& expected, const std::string& found) {
        if (expected != found) throw bad_bundle(pair + what + ": expected " + expected + ", found " + found);
    };
    same("patch_nums", listed(small.patch_nums), listed(large.patch_nums));
    same("vocab_size", std::to_string(small.vocab_size), std::to_string(large.vocab_size));
    same("num_classes", std::to_string(small.num_classes), std::to_string(large.num_classes));
    same("image_size", std::to_string(small.image_size), std::to_string(large.image_size));
    for (const Manifest* manifest : {&draft, &refiner}) {
        if (manifest->vqvae_sha256.empty()) {
            throw bad_bundle("draft: the bundle of " + manifest->model.name +
                             " has no hash of its VQVAE; export it again");
        }
    }
    if (draft.vqvae_sha256 != refiner.vqvae_sha256) {
        throw bad_bundle(pair + "they have different VQVAE weights; export both from the same VQVAE checkpoint");
    }
    const auto most = std::int64_t(refiner.scales.size());
    if (scales < 0 || scales > most) {
        throw bad_argument("draft_scales: expected 0 to " + std::to_string(most) + ", found " + std::to_string(scales));
    }
}

Drafted::Drafted(const Request& request, const Manifest& refiner) : left_(request) {
    left_.draft = nullptr;
    const auto scales = std::size_t(request.draft_scales);
    if (!scales) return;
    Request asked = left_;
    asked.on_scale = nullptr;
    // If all scales of the draft are guided, its engines need not be built for others.
    if (asked.sampling.guidance_scales >= request.draft_scales) asked.sampling.guidance_scales = 0;
    tokens_ = request.draft->draft(asked, scales);

    const auto total = std::size_t(refiner.model.tokens()), count = request.labels.size();
    const std::size_t drafted = scales < refiner.scales.size() ? std::size_t(refiner.scales[scales].offset) : total;
    keep_.assign(count * total, 0);
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t token = 0; token < total; ++token) {
            const std::size_t at = i * total + token;
            if (token < drafted) {
                keep_[at] = 1;
            } else if (request.keep && request.keep[at]) {
                keep_[at] = 1;
                tokens_[at] = request.kept_tokens[at];
            }
        }
    }
    left_.keep = keep_.data();
    left_.kept_tokens = tokens_.data();
}

}  // namespace var_edge_impl
