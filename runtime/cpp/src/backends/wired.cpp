#include "backends/wired.hpp"

#include <cstring>

#include "errors.hpp"

namespace var_edge_impl {

Batch::Batch(std::unique_ptr<Arrays> made, const Wanted& wanted, const Manifest& manifest,
             const std::vector<ScaleConstants>& constants)
    : arrays(std::move(made)), wiring(wanted, manifest, constants, *arrays) {}

void check_smooth(const Manifest& manifest) {
    if (manifest.graphs.count(SMOOTH_BRIDGE)) return;
    throw bad_bundle(manifest.model.name +
                     ": no graph for smooth sampling; make onnx SMOOTH=1 exports the bundle with it");
}

void WiredBackend::begin(const std::vector<std::int64_t>& labels, const Sampling& sampling, bool whole) {
    const auto device = current_device();
    batch_ = nullptr;
    if (sampling.smooth) check_smooth(*manifest_);
    const auto guided = std::size_t(sampling.guided(std::int64_t(manifest_->scales.size())));
    Batch& batch = prepared({std::int64_t(labels.size()), sampling.smooth, guided}, whole);
    batch.arrays->wait();  // a run that was stopped may still read what is written now
    batch.latest = -1;
    batch.decoded = false;
    batch.wiring.set_labels(labels.data());
    batch.begin();
    batch_ = &batch;
}

void WiredBackend::step(std::size_t k, const Draw& draw, const Sampling& sampling) {
    const auto device = current_device();
    batch_->decoded = false;
    batch_->wiring.set_scale(k, draw, sampling);
    batch_->step(k);
    batch_->latest = std::int64_t(k);
}

void WiredBackend::tokens(std::size_t k, std::int32_t* out) { copy_result(k, "tokens", out); }

void WiredBackend::drawn(std::size_t k, std::int32_t* out) { copy_result(k, "drawn", out); }

void WiredBackend::logits(std::size_t k, float* out) {
    const auto device = current_device();
    batch_->arrays->download(out, batch_->logits().rows(0, manifest_->scales[k].tokens));
}

std::vector<std::uint8_t> WiredBackend::finite() {
    const auto size = std::size_t(batch_->wiring.size);
    std::vector<std::uint8_t> rows(size * ALIGNMENT), found;  // (B, ALIGNMENT)
    copy_result(manifest_->scales.size(), "finite", rows.data());
    for (std::size_t i = 0; i < size; ++i) found.push_back(rows[i * ALIGNMENT]);
    return found;
}

void WiredBackend::decode(std::uint8_t* images, bool to_device) {
    const auto device = current_device();
    batch_->decode();
    batch_->decoded = true;
    const std::size_t part = manifest_->scales.size();
    if (to_device) batch_->arrays->download(images, batch_->wiring.results.stages(part).at("image"));
    else copy_result(part, "image", images);
}

// Copies an array of the wiring's results. After `decode` they are in the host's memory already.
void WiredBackend::copy_result(std::size_t part, const char* name, void* out) const {
    const SharedBlock& results = batch_->wiring.results;
    const Array& array = results.stages(part).at(name);
    if (batch_->decoded) {
        std::memcpy(out, results.host<std::uint8_t>(part, name), array.bytes());
    } else {
        const auto device = current_device();
        batch_->arrays->download(out, array);
    }
}

// Returns the batch of this size, ready to draw. If memory runs out, all that is held is freed and it is tried again.
Batch& WiredBackend::prepared(const Wanted& wanted, bool whole) {
    if (!keeps_batches_ && !batches_.count(wanted)) free_batches();  // before new arrays are allocated
    const bool held = !batches_.empty();
    try {
        return prepare(wanted, whole);
    } catch (const Error& error) {
        if (error.status != VAR_EDGE_OUT_OF_MEMORY || !held) throw;
    }
    free_batches();
    return prepare(wanted, whole);
}

Batch& WiredBackend::prepare(const Wanted& wanted, bool whole) {
    std::unique_ptr<Batch>& batch = batches_[wanted];
    try {
        if (!batch) batch = new_batch(wanted);
        batch->prepare(whole);
    } catch (...) {
        batches_.erase(wanted);  // also what is allocated of it
        throw;
    }
    return *batch;
}

void WiredBackend::free_batches() {
    batch_ = nullptr;
    batches_.clear();
}

}  // namespace var_edge_impl
