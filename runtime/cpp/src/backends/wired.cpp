#include "backends/wired.hpp"

#include "errors.hpp"

namespace var_edge_impl {

Batch::Batch(std::unique_ptr<Arrays> made, std::int64_t size, bool smooth, const Manifest& manifest,
             const std::vector<ScaleConstants>& constants)
    : arrays(std::move(made)), wiring(size, smooth, manifest, constants, *arrays) {}

void check_smooth(const Manifest& manifest) {
    if (manifest.graphs.count(SMOOTH_BRIDGE)) return;
    throw bad_bundle(manifest.model.name +
                     ": no graph for smooth sampling; make onnx SMOOTH=1 exports the bundle with it");
}

void WiredBackend::begin(const std::vector<std::int64_t>& labels, bool smooth) {
    const auto device = current_device();
    const auto size = std::int64_t(labels.size());
    if (!batch_ || batch_->wiring.size != size || batch_->wiring.smooth != smooth) {
        batch_.reset();  // frees the arrays of the other batch before new ones are allocated
        if (smooth) check_smooth(*manifest_);
        batch_ = prepare(size, smooth);
    }
    synchronize();  // a run that was stopped may still read what is written now
    batch_->latest = -1;
    batch_->wiring.set_labels(labels.data());
    batch_->begin();
}

void WiredBackend::step(std::size_t k, const Draw& draw, const Sampling& sampling) {
    const auto device = current_device();
    batch_->wiring.set_scale(k, draw, sampling);
    batch_->step(k);
    batch_->latest = std::int64_t(k);
}

void WiredBackend::tokens(std::size_t k, std::int32_t* out) {
    const auto device = current_device();
    batch_->arrays->download(out, batch_->wiring.tokens[k]);
}

void WiredBackend::drawn(std::size_t k, std::int32_t* out) {
    const auto device = current_device();
    batch_->arrays->download(out, batch_->wiring.drawn[k]);
}

void WiredBackend::logits(std::size_t k, float* out) {
    const auto device = current_device();
    batch_->arrays->download(out, batch_->wiring.logits.rows(0, manifest_->scales[k].tokens));
}

std::vector<std::uint8_t> WiredBackend::finite() {
    const auto device = current_device();
    return batch_->wiring.finite();
}

void WiredBackend::decode(std::uint8_t* images, bool to_device) {
    const auto device = current_device();
    batch_->decode(images, to_device);
}

}  // namespace var_edge_impl
